/** The scan with its layers, drawn by NiiVue; first coarse, then as it is. */

import { NVImage, Niivue, SLICE_TYPE } from "@niivue/niivue";

import { call, type Labels } from "./api";

export const WINDOWS = { lung: [-1350, 150], soft: [-160, 240] } as const;
export type WindowName = keyof typeof WINDOWS;
export const VIEWS = {
  multi: SLICE_TYPE.MULTIPLANAR,
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  render: SLICE_TYPE.RENDER,
} as const;
export type ViewName = keyof typeof VIEWS;
/** From the lowest to the topmost. */
export const LAYERS = ["lungs", "lobes", "lesions", "high-opacity"] as const;
export type LayerName = (typeof LAYERS)[number];

/** Where the crosshair is: in LPS mm as reports have it, and what is there. */
export type Place = { mm: [number, number, number]; hu: number | null; lobe: number; isLesion: boolean };

type Point = [number, number, number];

export class Viewer {
  onPlace: (place: Place) => void = () => undefined;
  private readonly nv: Niivue;
  private readonly layers = new Map<LayerName, NVImage>();
  private readonly shown = new Set<LayerName>(["lesions"]);
  private scan: NVImage | null = null;
  private layerOpacity = 0.45;
  private window: WindowName = "lung";
  private view: ViewName = "multi";

  constructor(
    private readonly jobId: string,
    private readonly canvas: HTMLCanvasElement,
  ) {
    this.nv = new Niivue({
      // As radiologists look: the patient's right is on the picture's left, in sagittal slices the front is.
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      isOrientationTextVisible: true,
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.35, 0.75, 1, 0.9],
      crosshairWidth: 0.15,
      crosshairWidthUnit: "percent",
      fontColor: [0.9, 0.9, 0.9, 1],
      dragAndDropEnabled: false,
      loadingText: "",
      isColorbar: false,
      logLevel: "error",
      // The page has buttons for both.
      viewModeHotKey: "",
      clipPlaneHotKey: "",
    });
    this.nv.onLocationChange = () => this.onPlace(this.place());
  }

  static isPossible(): boolean {
    return document.createElement("canvas").getContext("webgl2") !== null;
  }

  /** The first picture. Raises CallError: there is none. */
  async showPreview(): Promise<void> {
    const preview = await this.load("scan?size=preview", WINDOWS[this.window]);
    await this.nv.attachToCanvas(this.canvas);
    this.scan = preview;
    this.setView(this.view);
    this.draw();
  }

  /** The scan itself in the preview's place. Raises CallError: it is not kept. */
  async showScan(): Promise<void> {
    const mm = this.nv.frac2mm(this.nv.scene.crosshairPos);
    this.scan = await this.load("scan", WINDOWS[this.window]);
    this.draw();
    this.goTo([mm[0] as number, mm[1] as number, mm[2] as number]);
  }

  /** Masks with the colours of their labels. */
  async showLayers(labels: Labels): Promise<void> {
    await Promise.all(
      LAYERS.map(async (name) => {
        // A mask's own largest value is 1 to 5; its colours come from its labels.
        const image = await this.load(`masks/${name}`, [0, 1]);
        const known = labels.masks[name] ?? [];
        const rgb = (at: number): number[] => [0, ...known.map((label) => parseInt(label.colour.slice(at, at + 2), 16))];
        image.setColormapLabel({
          R: rgb(1),
          G: rgb(3),
          B: rgb(5),
          A: [0, ...known.map(() => 255)],
          I: [0, ...known.map((label) => label.number)],
          labels: ["", ...known.map((label) => label.name)],
        });
        this.layers.set(name, image);
      }),
    );
    this.draw();
    this.onPlace(this.place());
  }

  setLayer(name: LayerName, isShown: boolean): void {
    if (isShown) this.shown.add(name);
    else this.shown.delete(name);
    this.draw();
  }

  isShown(name: LayerName): boolean {
    return this.shown.has(name);
  }

  setLayerOpacity(opacity: number): void {
    this.layerOpacity = opacity;
    this.draw();
  }

  setWindow(name: WindowName): void {
    this.window = name;
    if (this.scan) [this.scan.cal_min, this.scan.cal_max] = WINDOWS[name];
    this.draw();
  }

  setView(name: ViewName): void {
    this.view = name;
    this.nv.setSliceType(VIEWS[name]);
    this.drawn();
  }

  /** Through the slices of the view that is open; axial where there are several. */
  step(by: number): void {
    const axis = this.view === "sagittal" ? 0 : this.view === "coronal" ? 1 : 2;
    const steps: Point = [0, 0, 0];
    steps[axis] = by;
    this.nv.moveCrosshairInVox(...steps);
  }

  /** Where the crosshair is between feet and head, 0 to 1. */
  get height(): number {
    return this.nv.scene.crosshairPos[2] as number;
  }

  set height(share: number) {
    this.nv.scene.crosshairPos[2] = share;
    this.nv.drawScene();
    this.onPlace(this.place());
  }

  /** To the slice with most opacity of a lobe, by its number; 0 is any of them. */
  goToWorst(lobe: number): void {
    const lobes = this.layers.get("lobes");
    const lesions = this.layers.get("lesions");
    if (!lobes?.img || !lesions?.img) return;
    const inLobe = lobes.img;
    const point =
      mostOf(lesions, (index) => lobe === 0 || inLobe[index] === lobe) ??
      mostOf(lobes, (index) => lobe === 0 || inLobe[index] === lobe);
    if (point) this.goTo(point);
  }

  /** RAS mm. */
  private goTo(mm: Point): void {
    const share = this.nv.mm2frac(mm);
    for (const axis of [0, 1, 2]) this.nv.scene.crosshairPos[axis] = Math.min(Math.max(share[axis] as number, 0), 1);
    this.nv.drawScene();
    this.onPlace(this.place());
  }

  private place(): Place {
    const mm = this.nv.frac2mm(this.nv.scene.crosshairPos);
    const at = (image: NVImage | undefined): number | null => {
      if (!image) return null;
      const [i, j, k] = image.mm2vox([mm[0] as number, mm[1] as number, mm[2] as number]) as unknown as Point;
      return image.getValue(i, j, k);
    };
    return {
      mm: [-(mm[0] as number), -(mm[1] as number), mm[2] as number],
      hu: at(this.scan ?? undefined),
      lobe: at(this.layers.get("lobes")) ?? 0,
      isLesion: at(this.layers.get("lesions")) === 1,
    };
  }

  /** All that is shown, at once: each layer costs a pass over the whole volume. */
  private draw(): void {
    if (!this.scan) return;
    // Later ones lie above: what is looked for on top.
    const shown = LAYERS.filter((name) => this.shown.has(name)).map((name) => this.layers.get(name));
    const overlays = shown.filter((image): image is NVImage => image !== undefined);
    for (const image of overlays) image.opacity = this.layerOpacity;
    this.nv.volumes = [this.scan, ...overlays];
    this.nv.back = this.scan;
    this.nv.overlays = overlays;
    this.nv.updateGLVolume();
    this.drawn();
  }

  private async load(below: string, [cal_min, cal_max]: readonly [number, number]): Promise<NVImage> {
    const data = await (await call(`v1/jobs/${this.jobId}/${below}`)).arrayBuffer();
    const name = `${below.replace(/\W+/g, "-")}.nii.gz`;
    return NVImage.loadFromUrl({ url: data, name, colormap: "gray", cal_min, cal_max });
  }

  /** For who looks from outside, as tests do: what is drawn now. */
  private drawn(): void {
    this.canvas.dataset["layers"] = [...this.layers.keys()].filter((name) => this.shown.has(name)).join(" ");
    this.canvas.dataset["view"] = this.view;
  }
}

/** The middle, in RAS mm, of those voxels of a mask that are wanted, in the axial millimetre that has most of them. */
function mostOf(mask: NVImage, isWanted: (index: number) => boolean): Point | null {
  const img = mask.img;
  const affine = mask.hdr?.affine;
  const dims = mask.hdr?.dims;
  if (!img || !affine || !dims) return null;
  const [nx, ny] = [dims[1] as number, dims[2] as number];
  const mm = (row: number, i: number, j: number, k: number): number => {
    const line = affine[row] as number[];
    return (line[0] as number) * i + (line[1] as number) * j + (line[2] as number) * k + (line[3] as number);
  };
  const found = new Map<number, [count: number, x: number, y: number]>();
  for (let index = 0; index < img.length; index++) {
    if (img[index] === 0 || !isWanted(index)) continue;
    const i = index % nx;
    const j = Math.floor(index / nx) % ny;
    const k = Math.floor(index / (nx * ny));
    const height = Math.round(mm(2, i, j, k));
    const sums = found.get(height) ?? [0, 0, 0];
    sums[0] += 1;
    sums[1] += mm(0, i, j, k);
    sums[2] += mm(1, i, j, k);
    found.set(height, sums);
  }
  let best: Point | null = null;
  let most = 0;
  for (const [height, [count, x, y]] of found) {
    if (count > most) [most, best] = [count, [x / count, y / count, height]];
  }
  return best;
}
