"""The addresses, one file for each kind of thing they lead to."""
