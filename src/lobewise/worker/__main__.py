"""`python -m lobewise.worker`: a worker as the environment describes it, for images that hold no command line."""

from lobewise.worker.main import run

if __name__ == "__main__":
    run()
