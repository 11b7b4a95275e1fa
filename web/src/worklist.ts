/** `/`: all jobs of the tenant, live. */

import "./style.css";

import { address, call, CallError, get, type Job, type Session, type Status } from "./api";
import { chooser, el, notice } from "./dom";
import { enter, failure } from "./gate";
import { number, say, type Word } from "./strings";
import { uploader } from "./upload";

const PAGE = 50;
/** A browser opens six connections to a host, and the feed waits in one of them. */
const STREAMS = 2;
const POLL_MS = 3000;
/** Of jobs that are asked about without a stream; the feed tells what becomes of the others. */
const ASKED_AT_ONCE = 5;
const STATUSES: Status[] = ["queued", "running", "succeeded", "failed", "cancelled"];
const STATUS_WORDS: Record<Status, Word> = {
  queued: "queued",
  running: "running",
  succeeded: "succeeded",
  failed: "failedStatus",
  cancelled: "cancelled",
};
const STAGE_WORDS: Record<string, Word> = {
  fetch: "fetch",
  read: "read",
  landmarks: "landmarks",
  lungs: "lungs",
  lesions: "lesions",
  severity: "severityStage",
  store: "store",
};

void enter({}, async (who, main) => {
  const list = new Worklist(who);
  main.replaceChildren(
    el("h1", { class: "unseen" }, say("worklist")),
    ...(who.roles.includes("submit") ? [uploader()] : []),
    list.filters,
    list.state,
    list.table,
    list.more,
    list.dialog,
  );
  await list.begin();
});

class Worklist {
  readonly state = el("div", { class: "state" });
  readonly more = el("button", { type: "button", class: "more", hidden: true, click: () => void this.load(true) }, say("more"));
  readonly filters: HTMLElement;
  readonly table: HTMLElement;
  readonly dialog: HTMLDialogElement;
  private readonly rows = el("tbody");
  private readonly shown = new Map<string, HTMLTableRowElement>();
  private readonly jobs = new Map<string, Job>();
  private readonly streams = new Map<string, EventSource>();
  private order: string[] = [];
  private sort = "-created_at";
  private status = "";
  private search = "";
  private nextCursor: string | null = null;
  private toDelete: string | null = null;
  private loading = 0;

  constructor(private readonly who: Session) {
    const field = el("input", {
      id: "search",
      type: "search",
      input: () => {
        this.search = field.value.trim().toLowerCase();
        this.arrange();
      },
    });
    this.filters = el(
      "section",
      { class: "filters row", "aria-label": say("search") },
      el("label", { for: "search" }, el("span", {}, say("search")), field),
      chooser("status", [["", say("all")], ...STATUSES.map((s): [string, string] => [s, say(STATUS_WORDS[s])])], "", (value) => {
        this.status = value;
        void this.load();
      }),
      chooser(
        "sort",
        [
          ["-created_at", say("newest")],
          ["created_at", say("oldest")],
          ["severity", say("severity")],
        ],
        this.sort,
        (value) => {
          this.sort = value;
          void this.load();
        },
      ),
    );
    const heads: Word[] = ["picture", "reference", "status", "opacity", "score", "age", "actions"];
    this.table = el(
      "table",
      { class: "jobs", hidden: true },
      el("caption", { class: "unseen" }, say("worklist")),
      el("thead", {}, el("tr", {}, ...heads.map((word) => el("th", { scope: "col" }, say(word))))),
      this.rows,
    );
    this.dialog = el(
      "dialog",
      { "aria-labelledby": "delete-title" },
      el("h2", { id: "delete-title" }, say("removeTitle")),
      el("p", { id: "delete-what" }),
      el("p", {}, say("removeText")),
      el(
        "div",
        { class: "row" },
        el("button", { type: "button", click: () => this.dialog.close() }, say("keep")),
        el("button", { type: "button", class: "danger", id: "delete-yes", click: () => void this.remove() }, say("remove")),
      ),
    );
  }

  /** The cursor first, then the list, then what came after the cursor: nothing is missed. */
  async begin(): Promise<void> {
    let cursor: string | null = null;
    try {
      cursor = (await get<{ next_cursor: string }>("v1/events?start=newest")).next_cursor;
    } catch {
      // Without the broker there is no feed, and a list all the same.
    }
    await this.load();
    void this.follow(cursor);
    setInterval(() => this.tick(), POLL_MS);
  }

  private async load(isMore = false): Promise<void> {
    const turn = ++this.loading;
    const query = new URLSearchParams({ limit: String(PAGE), sort: this.sort });
    if (this.status) query.append("status", this.status);
    if (isMore && this.nextCursor) query.append("cursor", this.nextCursor);
    if (!isMore && this.order.length === 0) this.state.replaceChildren(notice(say("loading")));
    try {
      const page = await get<{ items: Job[]; next_cursor: string | null }>(`v1/jobs?${query}`);
      if (turn !== this.loading) return;
      this.nextCursor = page.next_cursor;
      for (const job of page.items) this.jobs.set(job.id, job);
      const ids = page.items.map((job) => job.id);
      this.order = isMore ? [...this.order, ...ids.filter((id) => !this.order.includes(id))] : ids;
      this.arrange();
    } catch (error) {
      if (error instanceof CallError && error.status === 401) location.reload();
      this.state.replaceChildren(failure(error));
    }
  }

  /** Changes of all jobs, as the feed has them: one question that is held until there are some. */
  private async follow(cursor: string | null): Promise<void> {
    for (;;) {
      try {
        cursor ??= (await get<{ next_cursor: string }>("v1/events?start=newest")).next_cursor;
        const headers = { Prefer: "wait=25" };
        const found: { items: { job_id: string; type: string }[]; next_cursor: string } = await get(
          `v1/events?cursor=${encodeURIComponent(cursor)}`,
          { headers },
        );
        cursor = found.next_cursor;
        if (found.items.length > 0) await this.changed(found.items);
        else await pause(200);
      } catch (error) {
        if (error instanceof CallError && error.status === 401) return location.reload();
        if (error instanceof CallError && error.status === 410) {
          cursor = null;
          await this.load();
        }
        await pause(POLL_MS);
      }
    }
  }

  private async changed(items: { job_id: string; type: string }[]): Promise<void> {
    const purged = new Set(items.filter((item) => item.type.endsWith(".purged")).map((item) => item.job_id));
    for (const id of purged) this.forget(id);
    const ids = new Set(items.map((item) => item.job_id).filter((id) => !purged.has(id)));
    const isNew = [...ids].some((id) => !this.jobs.has(id));
    for (const id of ids) {
      if (this.jobs.has(id)) await this.look(id);
    }
    // Where a new one belongs in this order, and whether it fits, is the gateway's to say.
    if (isNew || this.sort === "severity" || this.status) await this.load();
    else this.arrange();
  }

  private async look(id: string): Promise<void> {
    try {
      this.update(await get<Job>(`v1/jobs/${id}`));
    } catch (error) {
      if (error instanceof CallError && (error.status === 410 || error.status === 404)) this.forget(id);
    }
  }

  private update(job: Job): void {
    this.jobs.set(job.id, job);
    if (this.shown.has(job.id)) this.draw(job);
    if (job.status !== "running") this.stopWatching(job.id);
  }

  private forget(id: string): void {
    this.stopWatching(id);
    this.jobs.delete(id);
    this.order = this.order.filter((other) => other !== id);
    this.arrange();
  }

  /** Progress of running jobs: a stream for the first, a question now and then for others. */
  private tick(): void {
    if (document.hidden) return;
    let asked = 0;
    for (const id of this.shown.keys()) {
      const job = this.jobs.get(id);
      if (!job) continue;
      const isOpen = job.status === "queued" || (job.status === "running" && !this.watch(id));
      if (isOpen && asked++ < ASKED_AT_ONCE) void this.look(id);
      else this.draw(job);
    }
  }

  private watch(id: string): boolean {
    if (this.streams.has(id)) return true;
    if (this.streams.size >= STREAMS) return false;
    const stream = new EventSource(address(`v1/jobs/${id}/events`));
    stream.addEventListener("job", (event) => this.update(JSON.parse((event as MessageEvent<string>).data) as Job));
    stream.addEventListener("error", () => this.stopWatching(id));
    this.streams.set(id, stream);
    return true;
  }

  private stopWatching(id: string): void {
    this.streams.get(id)?.close();
    this.streams.delete(id);
  }

  /** Put the rows in their order, without touching those that stay. */
  private arrange(): void {
    const wanted = this.order.filter((id) => {
      const job = this.jobs.get(id);
      return job && (!this.search || (job.client_reference ?? "").toLowerCase().includes(this.search));
    });
    for (const [id, row] of this.shown) {
      if (!wanted.includes(id)) {
        row.remove();
        this.shown.delete(id);
      }
    }
    for (const [at, id] of wanted.entries()) {
      const row = this.shown.get(id) ?? this.draw(this.jobs.get(id) as Job);
      if (this.rows.children[at] !== row) this.rows.insertBefore(row, this.rows.children[at] ?? null);
    }
    const isEmpty = wanted.length === 0;
    this.table.hidden = isEmpty;
    this.more.hidden = this.nextCursor === null;
    const isFiltered = Boolean(this.search || this.status || this.sort === "severity");
    this.state.replaceChildren(...(isEmpty ? [notice(isFiltered ? say("noneFits") : say("empty"))] : []));
  }

  private draw(job: Job): HTMLTableRowElement {
    const drawn = JSON.stringify([job, age(job.created_at)]);
    let row = this.shown.get(job.id);
    if (row?.dataset["drawn"] === drawn) return row;
    if (!row) {
      row = el("tr", { "data-job": job.id });
      this.shown.set(job.id, row);
    }
    row.dataset["drawn"] = drawn;
    row.className = job.status;
    const isScored = job.status === "succeeded" && job.task === "score";
    const picture = row.querySelector("img") ?? (isScored ? this.picture(job.id) : null);
    const label = job.client_reference ?? job.id.slice(-12);
    const may = (role: string): boolean => this.who.roles.includes(role);
    const isOpen = job.status === "queued" || job.status === "running";
    // Whoever is at a button of this row stays there.
    const focused = row.contains(document.activeElement) ? document.activeElement?.getAttribute("aria-label") : null;
    row.replaceChildren(
      el("td", { class: "picture" }, picture),
      el("th", { scope: "row" }, isScored ? el("a", { href: address(`view/${job.id}`) }, label) : label),
      el("td", { class: "status" }, ...this.statusOf(job)),
      el("td", { class: "figure" }, job.severity ? this.opacityOf(job) : null),
      el("td", { class: "figure" }, job.severity ? say("scoreOf", { score: job.severity.lung_severity_score }) : null),
      el("td", { class: "figure" }, el("time", { datetime: job.created_at, title: new Date(job.created_at).toLocaleString() }, age(job.created_at))),
      el(
        "td",
        { class: "actions" },
        isScored ? el("a", { class: "button", href: address(`view/${job.id}`), "aria-label": `${say("open")} ${label}` }, say("open")) : null,
        isOpen && may("cancel")
          ? el(
              "button",
              { type: "button", disabled: job.cancel_requested, "aria-label": `${say("cancel")} ${label}`, click: () => void this.cancel(job.id) },
              say("cancel"),
            )
          : null,
        may("admin")
          ? el("button", { type: "button", class: "quiet", "aria-label": `${say("remove")} ${label}`, click: () => this.ask(job.id, label) }, say("remove"))
          : null,
      ),
    );
    if (focused) row.querySelector<HTMLElement>(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
    return row;
  }

  private picture(id: string): HTMLImageElement {
    const image = el("img", { src: address(`v1/jobs/${id}/pictures/glass.png`), alt: say("glassAlt"), loading: "lazy", width: 72, height: 72 });
    // Earlier jobs have none.
    image.addEventListener("error", () => image.remove());
    return image;
  }

  private opacityOf(job: Job): HTMLElement {
    const percent = job.severity?.percent_opacity ?? 0;
    return el("span", { class: "opacity" }, el("meter", { min: 0, max: 100, value: percent, "aria-label": say("opacity") }), `${number(percent, 1)} %`);
  }

  private statusOf(job: Job): (HTMLElement | string)[] {
    const word = el("span", { class: `pill ${job.status}` }, say(STATUS_WORDS[job.status]));
    if (job.status === "running") {
      const stage = job.cancel_requested ? say("cancelling") : say(STAGE_WORDS[job.stage ?? ""] ?? "running");
      return [word, el("progress", { max: 1, value: job.progress, "aria-label": say("running") }), el("small", {}, stage)];
    }
    if (job.status === "queued" && job.queue_position) return [word, el("small", {}, say("position", { position: job.queue_position }))];
    if (job.error) return [word, el("small", { title: job.error.detail }, job.error.title)];
    return [word];
  }

  private async cancel(id: string): Promise<void> {
    try {
      this.update((await (await call(`v1/jobs/${id}/cancel`, { method: "POST" })).json()) as Job);
    } catch (error) {
      this.state.replaceChildren(failure(error));
    }
  }

  private ask(id: string, label: string): void {
    this.toDelete = id;
    (this.dialog.querySelector("#delete-what") as HTMLElement).textContent = label;
    this.dialog.showModal();
  }

  private async remove(): Promise<void> {
    const id = this.toDelete;
    this.dialog.close();
    if (id === null) return;
    this.stopWatching(id);
    try {
      await call(`v1/jobs/${id}`, { method: "DELETE" });
      this.forget(id);
    } catch (error) {
      this.state.replaceChildren(failure(error));
    }
  }
}

function age(since: string): string {
  const seconds = Math.max(0, (Date.now() - Date.parse(since)) / 1000);
  if (seconds < 60) return say("seconds", { n: 10 * Math.floor(seconds / 10) });
  if (seconds < 3600) return say("minutes", { n: Math.floor(seconds / 60) });
  if (seconds < 48 * 3600) return say("hours", { n: Math.floor(seconds / 3600) });
  return say("days", { n: Math.floor(seconds / 86400) });
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
