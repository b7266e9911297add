// Buttons, sliders, lists and keys of the page.
import { Color, SRGBColorSpace } from "three";
import type { Layer, Player } from "./player";
import { LAYERS } from "./player";
import { lengthText } from "./measure";
import { isTyping } from "./navigation";
import { rampGradient } from "./ramp";
import { MODES, type Mode } from "./stage";
import { Timeline } from "./timeline";

const LAYER_KEYS: Record<string, Layer> = { KeyG: "gaussians", KeyP: "points", KeyX: "mesh", KeyC: "cameras", KeyI: "photos" };

function get<T extends Element = HTMLElement>(selector: string): T {
  const found = document.querySelector<T>(selector);
  if (!found) throw new Error(`the page lacks ${selector}`);
  return found;
}

export class Controls {
  private readonly tip = get("#tip");
  private readonly toast = get("#toast");
  private readonly photo = get<HTMLImageElement>("#photo");
  private readonly blend = get<HTMLInputElement>("#blend");
  private toastTimer = 0;
  private photoHeld = false;
  private readonly timeline: Timeline;

  constructor(private readonly player: Player) {
    this.timeline = new Timeline(player);
  }

  /** Fill in the scene and listen; once, when the scene is there. */
  show(): void {
    const { data } = this.player;
    get("#title h1").textContent = data.name;
    get("#title p").textContent = this.facts();
    get("#about").textContent = this.about();
    get<HTMLElement>("#legend div").style.background = rampGradient();
    for (const layer of LAYERS) get(`#layer-${layer}`).hidden = !this.player.hasLayer(layer);
    this.fillStrip();
    this.listen();
    this.timeline.show();
    if (data.notes.length > 0) this.say(data.notes[0], 7000);
  }

  private facts(): string {
    const { data } = this.player;
    const parts: string[] = [];
    if (data.gaussians) parts.push(`${grouped(data.gaussians.count)} Gaussians`);
    else if (data.points) parts.push(`${grouped(data.points.count)} points`);
    if (data.cameras.length > 0) parts.push(`${data.cameras.length} photo${data.cameras.length > 1 ? "s" : ""}`);
    if (data.time) parts.push(`${Number((data.time.end_s - data.time.start_s).toPrecision(3))}\u00a0s`);
    const error = data.scale.relative_error;
    if (data.scale.kind === "metric") parts.push(`metric${error ? `\u00a0±\u00a0${Number((100 * error).toPrecision(2))}\u00a0%` : ""}`);
    return parts.join(" · ");
  }

  private about(): string {
    const { data } = this.player;
    const scale =
      data.scale.kind === "metric"
        ? `Lengths are metres, from ${data.scale.source || "a measurement"}.`
        : "The size of the scene is not known: lengths are in units of their own.";
    return [`Written by ${data.generator}, drawn by Spark and three.js.`, scale, ...data.notes].join("\n");
  }

  private fillStrip(): void {
    const strip = get("#strip");
    this.player.data.cameras.forEach((camera, index) => {
      const button = document.createElement("button");
      button.role = "option";
      button.title = camera.name;
      button.setAttribute("aria-label", camera.name);
      if (camera.photo) {
        const image = new Image();
        image.loading = "lazy";
        image.alt = "";
        image.src = camera.photo;
        button.append(image);
      } else {
        button.textContent = String(index + 1);
        button.style.padding = "0 8px";
      }
      button.onclick = () => void this.player.jumpTo(index);
      strip.append(button);
    });
  }

  // Listening

  private listen(): void {
    const { player } = this;
    get("#overview").onclick = () => void player.overview();
    get("#manner").onclick = () => this.toggleManner();
    get("#measure").onclick = () => player.setMeasuring(!player.measureOn);
    get("#layers-button").onclick = () => this.showPanel(get("#layers").hidden !== false);
    get("#save").onclick = () => void this.save();
    get("#share").onclick = () => void this.share();
    get("#help-button").onclick = () => get<HTMLDialogElement>("#help").showModal();
    const fullscreen = get("#fullscreen");
    fullscreen.hidden = !document.fullscreenEnabled;
    fullscreen.onclick = () => void (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen());
    get("#previous").onclick = () => player.step(-1);
    get("#next").onclick = () => player.step(1);
    this.blend.oninput = () => this.showPhoto();
    for (const mode of MODES) get(`#modes [data-mode=${mode}]`).onclick = () => player.setMode(mode);
    for (const layer of LAYERS) {
      const box = get<HTMLInputElement>(`#layer-${layer} input`);
      box.onchange = () => player.setLayer(layer, box.checked);
    }
    for (const button of this.backgrounds()) button.onclick = () => player.setBackground(button.dataset.color!);
    get("#view").addEventListener("pointerdown", () => this.showPanel(false));
    get("#view").addEventListener("pointerleave", () => this.showTip(null, 0, 0));
    window.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("keyup", (event) => event.code === "KeyV" && this.holdPhoto(false));
  }

  private key(event: KeyboardEvent): void {
    if (isTyping(event) || event.ctrlKey || event.metaKey || event.altKey || get<HTMLDialogElement>("#help").open) return;
    const { player } = this;
    const { target } = event;
    const onSlider = (target instanceof HTMLInputElement && target.type === "range") || target instanceof HTMLSelectElement;
    const layer = LAYER_KEYS[event.code];
    if (event.key === "?") get<HTMLDialogElement>("#help").showModal();
    else if (event.code === "Digit1" || event.code === "Digit2" || event.code === "Digit3") player.setMode(MODES[Number(event.code[5]) - 1]);
    else if (layer && player.hasLayer(layer)) player.setLayer(layer, !player.layers[layer]);
    else if (event.code === "KeyO") void player.overview();
    else if (event.code === "KeyF") this.toggleManner();
    else if (event.code === "KeyM") player.setMeasuring(!player.measureOn);
    else if (event.code === "KeyL") void this.share();
    else if (event.code === "KeyU") player.takeUp();
    else if (event.code === "KeyB") this.nextBackground();
    else if (event.code === "KeyV" && !event.repeat) this.holdPhoto(true);
    else if (event.key === "ArrowLeft" && !onSlider) player.step(-1);
    else if (event.key === "ArrowRight" && !onSlider) player.step(1);
    else if (event.key === "Escape") this.escape();
    else if (!this.timeline.key(event)) return;
    if (event.key !== "Escape") event.preventDefault();
  }

  private escape(): void {
    const { player } = this;
    if (get("#layers").hidden === false) this.showPanel(false);
    else if (player.measuring.pending || player.measuring.measurements.length > 0) player.clearMeasurements();
    else if (player.measureOn) player.setMeasuring(false);
    else if (player.trails?.trails.length) player.clearTrails();
    else if (player.tracing) player.setTracing(false);
  }

  private toggleManner(): void {
    const { navigation } = this.player;
    navigation.manner = navigation.manner === "orbit" ? "fly" : "orbit";
    get("#manner").setAttribute("aria-pressed", String(navigation.manner === "fly"));
    this.say(navigation.manner === "fly" ? "Fly: drag to look about, W A S D to move" : "Drag to turn round the scene");
  }

  private showPanel(open: boolean): void {
    get("#layers").hidden = !open;
    get("#layers-button").setAttribute("aria-expanded", String(open));
  }

  private async save(): Promise<void> {
    const url = await this.player.stage.capture(true);
    const link = document.createElement("a");
    link.href = url;
    link.download = `${this.player.data.name.replace(/[^\w.-]+/g, "_") || "scene"}.png`;
    link.click();
  }

  private async share(): Promise<void> {
    const link = this.player.link();
    try {
      window.history.replaceState(null, "", link);
    } catch {
      window.location.hash = link;
    }
    try {
      await navigator.clipboard.writeText(window.location.href);
      this.say("Link to this view copied");
    } catch {
      this.say("The address bar has the link to this view");
    }
  }

  // Showing

  showMode(): void {
    const { stage } = this.player;
    for (const mode of MODES) get(`#modes [data-mode=${mode}]`).setAttribute("aria-checked", String(mode === stage.mode));
    get("#legend").hidden = stage.mode !== ("depth" satisfies Mode);
  }

  showRange([near, far]: [number, number], metric: boolean): void {
    const [low, high] = document.querySelectorAll("#legend span");
    low.textContent = lengthText(near, metric, 2);
    high.textContent = lengthText(far, metric, 2);
  }

  showLayers(): void {
    for (const layer of LAYERS) get<HTMLInputElement>(`#layer-${layer} input`).checked = this.player.layers[layer];
  }

  private backgrounds(): HTMLButtonElement[] {
    return [...document.querySelectorAll<HTMLButtonElement>("#backgrounds button")];
  }

  showBackground(color: string): void {
    const light = new Color(color).getHSL({ h: 0, s: 0, l: 0 }, SRGBColorSpace).l > 0.6;
    document.documentElement.dataset.ground = light ? "light" : "dark";
    for (const button of this.backgrounds()) button.setAttribute("aria-checked", String(button.dataset.color === color));
  }

  private nextBackground(): void {
    const buttons = this.backgrounds();
    const now = buttons.findIndex((button) => button.getAttribute("aria-checked") === "true");
    this.player.setBackground(buttons[(now + 1) % buttons.length].dataset.color!);
  }

  showMeasuring(): void {
    const { measureOn, measuring } = this.player;
    get("#measure").setAttribute("aria-pressed", String(measureOn));
    if (measureOn && measuring.measurements.length === 0) this.say("Click two places");
  }

  sayMeasured(distance: number): void {
    const { scale } = this.player.data;
    const error = scale.kind === "metric" && scale.relative_error ? ` (scale ± ${Number((100 * scale.relative_error).toPrecision(2))} %)` : "";
    this.say(`${lengthText(distance, scale.kind === "metric", 4)}${error}`);
  }

  showTip(text: string | null, u: number, v: number): void {
    this.tip.hidden = text === null;
    if (text === null) return;
    this.tip.textContent = text;
    const left = Math.min(u + 14, window.innerWidth - this.tip.offsetWidth - 8);
    this.tip.style.transform = `translate(${left}px, ${v + 16}px)`;
  }

  /** The bar of the photo that is looked through, and its place in the strip. */
  showExact(): void {
    const { exact, data } = this.player;
    get("#shot").hidden = exact < 0;
    const buttons = get("#strip").children;
    for (let i = 0; i < buttons.length; i++) buttons[i].setAttribute("aria-selected", String(i === exact));
    if (exact < 0) return;
    this.showTip(null, 0, 0);
    get("#shot strong").textContent = data.cameras[exact].name;
    get("#shot label").hidden = data.cameras[exact].photo === null;
    this.photo.src = data.cameras[exact].photo ?? "";
    buttons[exact].scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /** Lay photo and frame over the picture; null hides them. */
  placePhoto(rectangle: [number, number, number, number] | null): void {
    const frame = get("#frame");
    const hasPhoto = rectangle !== null && this.player.data.cameras[this.player.exact].photo !== null;
    frame.hidden = rectangle === null;
    this.photo.hidden = !hasPhoto;
    if (!rectangle) return;
    for (const { style } of [frame, this.photo]) {
      [style.left, style.top, style.width, style.height] = rectangle.map((v) => `${v}px`);
    }
    this.showPhoto();
  }

  private showPhoto(): void {
    this.photo.style.opacity = this.photoHeld ? "1" : String(Number(this.blend.value) / 100);
  }

  private holdPhoto(held: boolean): void {
    this.photoHeld = held;
    this.showPhoto();
  }

  showTime(): void {
    this.timeline.showTime();
  }

  showPlayback(): void {
    this.timeline.showState();
  }

  /** A short message that goes away by itself. */
  say(text: string, milliseconds = 2600): void {
    this.toast.textContent = text;
    this.toast.classList.add("shown");
    window.clearTimeout(this.toastTimer);
    this.toastTimer = window.setTimeout(() => this.toast.classList.remove("shown"), milliseconds);
  }
}

function grouped(count: number): string {
  return count.toLocaleString("en").replaceAll(",", "\u202f");
}
