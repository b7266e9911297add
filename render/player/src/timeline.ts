// The time line: play and pause, the slider, speed, what happens at the ends, trails; and their keys.
import { ENDS, type Ends, SPEEDS } from "./playback";
import type { Player } from "./player";

const AT_END: Record<Ends, [title: string, path: string]> = {
  loop: ["At the end: begin again", "M6 11V9.5A3.5 3.5 0 0 1 9.5 6H17m-2.5-2.5L17 6l-2.5 2.5M18 13v1.5a3.5 3.5 0 0 1-3.5 3.5H7m2.5 2.5L7 18l2.5-2.5"],
  pingpong: ["At the end: go back", "M4 9h15m-3-3 3 3-3 3M20 15H5m3-3-3 3 3 3"],
  once: ["At the end: stop", "M4 12h12m-4-4 4 4-4 4M20 6v12"],
};
const PLAY = "M8 5.5v13l10.5-6.5z";
const PAUSE = "M8.5 5.5v13M15.5 5.5v13";

function get<T extends Element = HTMLElement>(selector: string): T {
  return document.querySelector<T>(`#timeline ${selector}`)!;
}

export class Timeline {
  private readonly slider = get<HTMLInputElement>("#time");
  private readonly speed = get<HTMLSelectElement>("#speed");

  constructor(private readonly player: Player) {}

  /** Fill in and listen; once, when the scene is there. */
  show(): void {
    const { player, slider, speed } = this;
    const { playback } = player;
    const { time, motion } = player.data;
    document.getElementById("timeline")!.hidden = playback === null;
    for (const node of document.querySelectorAll<HTMLElement>("[data-needs=time]")) node.hidden = playback === null;
    if (!playback || !time) return;
    slider.min = String(time.start_s);
    slider.max = String(time.end_s);
    speed.append(...SPEEDS.map((s) => new Option(`${s}×`, String(s))));
    get("#trace").hidden = !motion;
    get("#play").onclick = () => playback.toggle();
    slider.oninput = () => player.setTime(Number(slider.value));
    slider.onpointerdown = () => playback.hold(true);
    for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, () => playback.hold(false));
    speed.onchange = () => {
      playback.setSpeed(Number(speed.value));
      speed.blur(); // so that keys are the player's again
    };
    get("#ends").onclick = () => playback.setEnds(ENDS[(ENDS.indexOf(playback.ends) + 1) % ENDS.length]);
    get("#trace").onclick = () => player.setTracing(!player.tracing);
    get("#untrace").onclick = () => player.clearTrails();
    this.showTime();
    this.showState();
  }

  /** Whether a key was one of time's. */
  key(event: KeyboardEvent): boolean {
    const { player } = this;
    const { playback } = player;
    if (!playback || event.target instanceof HTMLSelectElement) return false;
    if (event.key === " ") return this.space(event.target);
    if (event.key === "," || event.key === ".") playback.step(event.key === "." ? 1 : -1);
    else if (event.key === "<" || event.key === ">") playback.changeSpeed(event.key === ">" ? 1 : -1);
    else if (event.code === "KeyT" && player.data.motion) player.setTracing(!player.tracing);
    else return false;
    return true;
  }

  /** A button that the keyboard has led to is pressed by the space bar; one that was clicked before is not again. */
  private space(target: EventTarget | null): boolean {
    if (target instanceof HTMLButtonElement) {
      if (target.matches(":focus-visible")) return false;
      target.blur();
    }
    this.player.playback?.toggle();
    return true;
  }

  showTime(): void {
    if (!this.player.playback) return;
    this.slider.value = String(this.player.time_s);
    get("output").textContent = `${this.player.time_s.toFixed(2)} s`;
  }

  /** What is pressed, chosen and there to be cleared. */
  showState(): void {
    const { playback, tracing, trails } = this.player;
    if (!playback) return;
    const { playing, speed, ends } = playback;
    get("#play path").setAttribute("d", playing ? PAUSE : PLAY);
    get("#play").title = playing ? "Pause (space)" : "Play (space)";
    this.speed.value = String(speed);
    const [title, path] = AT_END[ends];
    get("#ends").title = title;
    get("#ends path").setAttribute("d", path);
    get("#trace").setAttribute("aria-pressed", String(tracing));
    get("#untrace").hidden = (trails?.trails.length ?? 0) === 0;
  }
}
