/** `/view/{job}`: one result, the scan beside its scores. */

import "./style.css";

import { address, call, CallError, get, type Job, type Labels, type LobeScores, type Report } from "./api";
import { el, notice } from "./dom";
import { enter } from "./gate";
import { number, say, type Word } from "./strings";
import type { LayerName, ViewName, Viewer, WindowName } from "./viewer";

const LAYER_WORDS: Record<LayerName, Word> = {
  lesions: "layerLesions",
  lobes: "layerLobes",
  lungs: "layerLungs",
  "high-opacity": "layerHigh",
};
const PICTURES = ["coronal", "axial", "sagittal", "glass"] as const;
const jobId = location.pathname.split("/").at(-1) ?? "";

void enter({ back: true }, async (_who, main) => {
  main.replaceChildren(notice(say("loading")));
  let job: Job;
  try {
    job = await get<Job>(`v1/jobs/${jobId}`);
  } catch (error) {
    const status = error instanceof CallError ? error.status : 0;
    if (status !== 404 && status !== 410) throw error;
    main.replaceChildren(notice(status === 410 ? say("purged") : say("noJob")));
    return;
  }
  if (job.status !== "succeeded" || job.task !== "score") {
    const word: Word = job.status === "failed" ? "failedStatus" : job.status;
    const why = job.error ? el("p", {}, `${job.error.title}. ${job.error.detail}`) : null;
    main.replaceChildren(notice(say("notReady", { status: say(word) }), why));
    return;
  }
  // The picture first: the scores are there long before it.
  const stage = el("section", { class: "stage", "aria-label": say("result") });
  const side = el("aside", { class: "side" });
  const name = job.client_reference ?? job.id.slice(-12);
  document.title = `${name} · ${say("title")}`;
  main.replaceChildren(stage, side);
  let viewer: Viewer | null = null;
  const looking = showStage(stage, (opened) => (viewer = opened));
  const report = await get<Report>(`v1/jobs/${jobId}/report`);
  side.replaceChildren(
    el("h1", {}, name),
    scores(report, (lobe) => viewer?.goToWorst(lobe)),
    findings(report, (lobe) => viewer?.goToWorst(lobe)),
    provenance(report),
    downloads(),
  );
  await looking;
});

/** Scan and tools, or the pictures where there is no scan to look at, or nothing to draw it with. */
async function showStage(stage: HTMLElement, onOpen: (viewer: Viewer) => void): Promise<void> {
  const canvas = el("canvas", { tabindex: 0, "aria-label": say("canvas"), role: "application" });
  const quality = el("p", { class: "resolution", role: "status" }, say("loading"));
  const place = el("output", { class: "place" });
  const height = el("input", { type: "range", min: 0, max: 1, step: "any", "aria-label": say("slice") });
  const { LAYERS, VIEWS, Viewer, WINDOWS } = await import("./viewer");
  if (!Viewer.isPossible()) return showPictures(stage, say("noWebgl"));
  const viewer = new Viewer(jobId, canvas);
  const group = (word: Word, ...children: HTMLElement[]): HTMLElement =>
    el("fieldset", { class: "tools" }, el("legend", {}, say(word)), ...children);
  const radios = <Name extends string>(of: string, names: Name[], first: Name, use: (name: Name) => void): HTMLElement[] =>
    names.map((name) =>
      el(
        "label",
        { class: "choice" },
        el("input", { type: "radio", name: of, value: name, checked: name === first, change: () => use(name) }),
        el("span", {}, say(name as unknown as Word)),
      ),
    );
  const layers = LAYERS.map((name) =>
    el(
      "label",
      { class: "choice" },
      el("input", {
        type: "checkbox",
        value: name,
        checked: viewer.isShown(name),
        change: (event) => viewer.setLayer(name, (event.target as HTMLInputElement).checked),
      }),
      el("span", { class: `layer ${name}` }, say(LAYER_WORDS[name])),
    ),
  );
  const opacity = el("input", { type: "range", id: "opacity", min: 0, max: 1, step: 0.05, value: 0.45 });
  opacity.addEventListener("input", () => viewer.setLayerOpacity(Number(opacity.value)));
  height.addEventListener("input", () => (viewer.height = Number(height.value)));
  stage.replaceChildren(
    el(
      "div",
      { class: "toolbar" },
      group("views", ...radios("view", Object.keys(VIEWS) as ViewName[], "multi", (name) => viewer.setView(name))),
      group("window", ...radios("window", Object.keys(WINDOWS) as WindowName[], "lung", (name) => viewer.setWindow(name))),
      group("layers", ...layers),
      el("label", { class: "tools", for: "opacity" }, el("span", {}, say("layerOpacity")), opacity),
    ),
    el("div", { class: "canvas" }, canvas),
    el("div", { class: "below" }, el("label", { class: "height" }, el("span", {}, say("slice")), height), place, quality),
  );
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: 1, ArrowRight: 1, PageUp: 10, ArrowDown: -1, ArrowLeft: -1, PageDown: -10 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    // NiiVue's own keys would move it once more.
    event.stopImmediatePropagation();
    viewer.step(step);
  }, { capture: true });
  viewer.onPlace = (now) => {
    height.value = String(viewer.height);
    const lobe = LOBES[now.lobe - 1];
    const words = [
      now.hu === null ? "" : say("hu", { value: Math.round(now.hu) }),
      lobe ? say(lobe) : say("outside"),
      now.isLesion ? say("inLesion") : "",
      `${now.mm.map((value) => number(value, 1)).join(" / ")} mm`,
    ];
    place.textContent = words.filter(Boolean).join(" · ");
  };
  try {
    await viewer.showPreview();
  } catch (error) {
    if (!(error instanceof CallError) || error.status !== 404) throw error;
    return showPictures(stage, say("noScan"));
  }
  onOpen(viewer);
  quality.textContent = say("preview");
  document.body.dataset["shows"] = "preview";
  performance.mark("first-picture");
  const labels = get<Labels>(`v1/jobs/${jobId}/labels`).catch((): Labels => ({ masks: {} }));
  try {
    await viewer.showScan();
    quality.textContent = say("full");
  } catch (error) {
    if (!(error instanceof CallError) || error.status !== 404) throw error;
    quality.textContent = say("onlyPreview");
  }
  performance.mark("full-resolution");
  await viewer.showLayers(await labels);
  viewer.goToWorst(0);
  performance.mark("layers");
  document.body.dataset["shows"] = "all";
}

const LOBES: LobeScores["lobe"][] = ["left_upper", "left_lower", "right_upper", "right_middle", "right_lower"];

async function showPictures(stage: HTMLElement, why: string): Promise<void> {
  const figures = PICTURES.map((name) => {
    const image = el("img", { src: address(`v1/jobs/${jobId}/pictures/${name}.png`), alt: name === "glass" ? say("glassAlt") : say(name) });
    return el("figure", {}, image, el("figcaption", {}, name === "glass" ? say("glassAlt") : say(name)));
  });
  const has = await call(`v1/jobs/${jobId}/pictures/glass.png`).then(
    () => true,
    () => false,
  );
  stage.replaceChildren(el("p", {}, has ? why : say("noImages")), ...(has ? [el("div", { class: "pictures" }, ...figures)] : []));
  document.body.dataset["shows"] = "pictures";
}

function scores(report: Report, goTo: (lobe: number) => void): HTMLElement {
  const heads: Word[] = ["lobe", "volume", "opacity", "range", "high", "score"];
  const row = (
    name: HTMLElement | string,
    figures: { volume_ml: number; percent_opacity: number; percent_high_opacity: number; percent_opacity_range: Report["severity"]["percent_opacity_range"] },
    score: string,
    attributes: Record<string, string> = {},
  ): HTMLElement => {
    const range = figures.percent_opacity_range;
    return el(
      "tr",
      attributes,
      el("th", { scope: "row" }, name),
      el("td", {}, say("ml", { n: number(figures.volume_ml, 0) })),
      el("td", {}, el("span", { class: "opacity" }, bar(figures.percent_opacity, range), say("percent", { n: number(figures.percent_opacity, 1) }))),
      el("td", {}, range ? `${number(range.low, 1)}–${number(range.high, 1)}` : ""),
      el("td", {}, say("percent", { n: number(figures.percent_high_opacity, 1) })),
      el("td", {}, score),
    );
  };
  const lobes = report.lobes.map((lobe) =>
    row(
      el("button", { type: "button", class: `lobe ${lobe.lobe}`, title: say("goTo"), click: () => goTo(lobe.label) }, say(lobe.lobe)),
      lobe,
      `${lobe.severity_score} · ${lobe.high_opacity_score}`,
      { "data-lobe": lobe.lobe },
    ),
  );
  const whole = { ...report.severity, volume_ml: report.lungs.volume_ml };
  return el(
    "section",
    {},
    el("h2", {}, say("scores")),
    el(
      "dl",
      { class: "totals" },
      el("div", {}, el("dt", {}, say("opacity")), el("dd", {}, say("percent", { n: number(report.severity.percent_opacity, 1) }))),
      el("div", {}, el("dt", {}, say("lss")), el("dd", {}, `${report.severity.lung_severity_score}/20`)),
      el("div", {}, el("dt", {}, say("lhos")), el("dd", {}, `${report.severity.lung_high_opacity_score}/20`)),
    ),
    el(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": say("scores") },
      el(
        "table",
        { class: "scores" },
        el("thead", {}, el("tr", {}, ...heads.map((word) => el("th", { scope: "col" }, say(word))))),
        el("tbody", {}, ...lobes),
        el(
          "tfoot",
          {},
          row(
            el("button", { type: "button", class: "lobe", title: say("goTo"), click: () => goTo(0) }, say("whole")),
            whole,
            `${report.severity.lung_severity_score} · ${report.severity.lung_high_opacity_score}`,
          ),
        ),
      ),
    ),
    el("p", { class: "hint" }, say("rangeHint")),
  );
}

/** A bar with the range on it; SVG, since a style in the page would need leave. */
function bar(percent: number, range: { low: number; high: number } | null): SVGElement {
  const space = "http://www.w3.org/2000/svg";
  const rect = (name: string, x: number, width: number, y: number, height: number): SVGElement => {
    const made = document.createElementNS(space, "rect");
    for (const [key, value] of Object.entries({ class: name, x, y, width: Math.max(width, 0.5), height })) made.setAttribute(key, String(value));
    return made;
  };
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 100 10");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "bar");
  svg.append(rect("track", 0, 100, 2, 6), rect("fill", 0, percent, 2, 6));
  if (range) svg.append(rect("range", range.low, range.high - range.low, 0, 10));
  return svg;
}

function findings(report: Report, goTo: (lobe: number) => void): HTMLElement {
  const items = report.quality.map((finding) => {
    const lobe = finding.lobe;
    return el(
      "li",
      { class: finding.severity },
      el("span", { class: `pill ${finding.severity}` }, say(finding.severity)),
      finding.message,
      lobe ? el("button", { type: "button", class: "quiet", click: () => goTo(LOBES.indexOf(lobe) + 1) }, say(lobe)) : null,
    );
  });
  const none = el("p", { class: "hint" }, say("noFindings"));
  return el("section", {}, el("h2", {}, say("findings")), items.length ? el("ul", { class: "findings", lang: "en" }, ...items) : none);
}

function provenance(report: Report): HTMLElement {
  const from = report.provenance;
  const pair = (word: Word, value: string | HTMLElement): HTMLElement => el("div", {}, el("dt", {}, say(word)), el("dd", {}, value));
  const seconds = Object.values(from.seconds).reduce((sum, value) => sum + value, 0);
  return el(
    "details",
    {},
    el("summary", {}, say("provenance")),
    el(
      "dl",
      { class: "pairs" },
      pair("software", from.software),
      pair("device", from.device),
      pair("duration", say("seconds", { n: number(seconds, 1) })),
      pair("models", from.models.map((model) => `${model.name} ${model.version} (${model.sha256.slice(0, 12)})`).join(", ")),
      pair("input", from.input_sha256),
      ...(from.reused_from ? [pair("reusedFrom", from.reused_from)] : []),
    ),
  );
}

function downloads(): HTMLElement {
  const base = `v1/jobs/${jobId}`;
  const link = (path: string, text: string, name: string): HTMLElement =>
    el("li", {}, el("a", { href: address(`${base}/${path}`), download: name }, text));
  return el(
    "section",
    {},
    el("h2", {}, say("downloads")),
    el(
      "ul",
      { class: "downloads" },
      link("report", say("reportFile"), "report.json"),
      link("scan", say("scanFile"), "scan.nii.gz"),
      ...(Object.keys(LAYER_WORDS) as LayerName[]).map((name) => link(`masks/${name}`, say("maskFile", { name: say(LAYER_WORDS[name]) }), `${name}.nii.gz`)),
      ...PICTURES.map((name) => link(`pictures/${name}.png`, `${name} (PNG)`, `${name}.png`)),
    ),
  );
}
