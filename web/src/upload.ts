/** A scan by drag and drop or by choice: a file as it is, a folder of slices as one zip file. */

import { Zip, ZipPassThrough } from "fflate";

import { CallError, submit } from "./api";
import { chooser, el } from "./dom";
import { say } from "./strings";

/** The part of the page that takes scans; it listens to drops everywhere. */
export function uploader(): HTMLElement {
  const status = el("p", { class: "sending", role: "status" });
  const bar = el("progress", { max: 1, value: 0, hidden: true, "aria-label": say("upload") });
  const stop = el("button", { type: "button", hidden: true }, say("stopUpload"));
  const reference = el("input", { id: "reference", maxlength: 128, placeholder: say("referenceHint") });
  let priority = "routine";
  let busy = false;

  async function send(files: File[]): Promise<void> {
    const first = files[0];
    if (busy || !first) return;
    busy = true;
    const stopped = new AbortController();
    stop.onclick = () => stopped.abort();
    bar.hidden = stop.hidden = false;
    bar.value = 0;
    try {
      let body: Blob = first;
      if (files.length > 1) {
        status.textContent = say("packing", { count: files.length });
        body = await zipped(files);
      }
      status.textContent = say("sending", { name: files.length > 1 ? "DICOM" : first.name });
      const fields = { priority, client_reference: reference.value.trim() };
      await submit(body, "scan", fields, (share) => (bar.value = share), stopped.signal);
      status.textContent = say("sent");
      reference.value = "";
    } catch (error) {
      if ((error as Error).name === "AbortError") status.textContent = "";
      else {
        const detail = error instanceof CallError && error.status === 0 ? say("offline") : (error as Error).message;
        status.textContent = say("uploadFailed", { detail });
      }
    } finally {
      bar.hidden = stop.hidden = true;
      busy = false;
    }
  }

  const picker = (word: "chooseFile" | "chooseFolder", isFolder: boolean): HTMLElement => {
    const input = el("input", { type: "file", class: "unseen", "aria-label": say(word), tabindex: -1 });
    input.webkitdirectory = isFolder;
    input.addEventListener("change", () => {
      void send([...(input.files ?? [])]);
      input.value = "";
    });
    return el("span", {}, el("button", { type: "button", click: () => input.click() }, say(word)), input);
  };
  const zone = el(
    "section",
    { class: "drop", "aria-labelledby": "upload-title" },
    el("h2", { id: "upload-title" }, say("upload")),
    el("p", {}, say("drop")),
    el(
      "div",
      { class: "row" },
      el("label", { for: "reference" }, el("span", {}, say("reference")), reference),
      chooser(
        "priority",
        (["routine", "stat", "batch"] as const).map((name) => [name, say(name)]),
        priority,
        (value) => (priority = value),
      ),
      picker("chooseFile", false),
      picker("chooseFolder", true),
      stop,
    ),
    bar,
    status,
  );
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) zone.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    // Asked for at once: after the event there is nothing in it any more.
    const entries = [...(event.dataTransfer?.items ?? [])].map((item) => item.webkitGetAsEntry());
    void Promise.all(entries.map(filesOf)).then((found) => send(found.flat()));
  });
  return zone;
}

async function filesOf(entry: FileSystemEntry | null): Promise<File[]> {
  if (entry === null) return [];
  if (entry.isFile) {
    return [await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject))];
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const found: FileSystemEntry[] = [];
  // It gives a hundred at a time, and none at the end.
  for (;;) {
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) break;
    found.push(...some);
  }
  return (await Promise.all(found.map(filesOf))).flat();
}

/** The files as a zip, not compressed and named by number: names of files and folders may be patients'. */
async function zipped(files: File[]): Promise<Blob> {
  const pieces: BlobPart[] = [];
  let failed: Error | null = null;
  const zip = new Zip((error, piece) => {
    if (error) failed = error;
    else pieces.push(piece as BlobPart);
  });
  for (const [index, file] of files.entries()) {
    const entry = new ZipPassThrough(`${String(index).padStart(5, "0")}.dcm`);
    zip.add(entry);
    entry.push(new Uint8Array(await file.arrayBuffer()), true);
  }
  zip.end();
  if (failed !== null) throw failed;
  return new Blob(pieces, { type: "application/zip" });
}
