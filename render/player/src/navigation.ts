// Mouse, fingers and keys to views: turning round a point (orbit) or looking about (fly), and travelling between views.
import { Quaternion, Vector3 } from "three";
import { type View, between, copyView, fitted, forward, pivot } from "./view";

export type Manner = "orbit" | "fly";

interface Finger {
  x: number;
  y: number;
  startX: number;
  startY: number;
  button: number;
}

export interface NavigationEvents {
  /** The view changed; `byHand` if the user moved it. */
  onView: (view: View, byHand: boolean) => void;
  onClick: (u: number, v: number) => void;
  onDoubleClick: (u: number, v: number) => void;
  onHover: (u: number, v: number) => void;
}

const CLICK_PX = 5;
const POLE = 0.035; // rad that orbiting keeps away from straight up and down
const SMOOTHING_S = 0.06;
const TRAVEL_S = 0.7;
const LONGEST_STEP_S = 0.3;
const MOVES: Record<string, [number, number, number]> = {
  KeyW: [0, 0, 1], KeyS: [0, 0, -1], KeyA: [-1, 0, 0], KeyD: [1, 0, 0], KeyE: [0, -1, 0], KeyQ: [0, 1, 0],
};

export class Navigation {
  manner: Manner = "orbit";
  private view: View;
  private readonly fingers = new Map<number, Finger>();
  private readonly held = new Set<string>();
  /** What the hand did and the view has not followed yet. */
  private readonly pending = { turnX: 0, turnY: 0, panX: 0, panY: 0, zoom: 0 };
  private travel: { from: View; to: View; start: number; done: () => void } | null = null;
  private lastTick = 0;
  private ticking = 0;
  private lastTap = { time: -Infinity, x: 0, y: 0 };

  constructor(
    private readonly element: HTMLElement,
    view: View,
    readonly up: Vector3,
    private readonly sceneSize: number,
    private readonly events: NavigationEvents,
  ) {
    this.view = copyView(view);
    this.listen();
  }

  get current(): View {
    return copyView(this.view);
  }

  /** Be at a view, at once or by travelling there. */
  go(view: View, animate: boolean): Promise<void> {
    this.stop();
    const still = !animate || window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (still) {
      this.view = copyView(view);
      this.events.onView(this.current, false);
      return Promise.resolve();
    }
    return new Promise((done) => {
      this.travel = { from: this.current, to: copyView(view), start: performance.now(), done };
      this.wake();
    });
  }

  /** Let go of everything: a travel in progress, what is pending, keys that are down. */
  stop(): void {
    this.travel?.done();
    this.travel = null;
    Object.assign(this.pending, { turnX: 0, turnY: 0, panX: 0, panY: 0, zoom: 0 });
    this.held.clear();
  }

  // Time

  private wake(): void {
    if (this.ticking === 0) {
      this.lastTick = performance.now();
      this.ticking = requestAnimationFrame((now) => this.tick(now));
    }
  }

  private tick(now: number): void {
    this.ticking = 0;
    const seconds = Math.min(LONGEST_STEP_S, Math.max(0, (now - this.lastTick) / 1000));
    this.lastTick = now;
    const goesOn = this.travel ? this.followTravel(now) : this.followHand(seconds);
    if (goesOn) this.ticking = requestAnimationFrame((next) => this.tick(next));
  }

  private followTravel(now: number): boolean {
    const { from, to, start, done } = this.travel!;
    const t = Math.min(1, (now - start) / 1000 / TRAVEL_S);
    const eased = t * t * t * (t * (6 * t - 15) + 10);
    this.view = t < 1 ? between(from, to, eased, this.element.clientWidth, this.element.clientHeight) : copyView(to);
    if (t >= 1) this.travel = null;
    this.events.onView(this.current, false);
    if (t >= 1) done();
    return t < 1;
  }

  private followHand(seconds: number): boolean {
    const share = 1 - Math.exp(-seconds / SMOOTHING_S);
    const take = (key: keyof typeof this.pending) => {
      const part = this.pending[key] * share;
      this.pending[key] -= part;
      return part;
    };
    this.turn(take("turnX"), take("turnY"));
    this.pan(take("panX"), take("panY"));
    this.zoom(take("zoom"));
    this.walk(seconds);
    this.events.onView(this.current, true);
    const rest = Object.values(this.pending).some((v) => Math.abs(v) > 0.02);
    if (!rest) Object.assign(this.pending, { turnX: 0, turnY: 0, panX: 0, panY: 0, zoom: 0 });
    return rest || this.held.size > 0;
  }

  // Motions; arguments in CSS pixels of the hand

  private turn(dx: number, dy: number): void {
    if (dx === 0 && dy === 0) return;
    const perPixel = (this.manner === "orbit" ? 1.6 * Math.PI : -1.2) / Math.max(this.element.clientHeight, 400);
    const { view } = this;
    const centre = this.manner === "orbit" ? pivot(view) : view.position.clone();
    const rotation = new Quaternion().setFromAxisAngle(this.up, -dx * perPixel).multiply(this.tilt(-dy * perPixel));
    view.position.sub(centre).applyQuaternion(rotation).add(centre);
    view.rotation.premultiply(rotation).normalize();
    this.level(0.004 * Math.hypot(dx, dy));
  }

  /** A turn round the camera's right, but none that goes on towards a pole that is reached. */
  private tilt(angle: number): Quaternion {
    const right = new Vector3(1, 0, 0).applyQuaternion(this.view.rotation);
    const turned = new Quaternion().setFromAxisAngle(right, Math.min(Math.max(angle, -0.3), 0.3));
    const before = forward(this.view).angleTo(this.up);
    const after = forward(this.view).applyQuaternion(turned).angleTo(this.up);
    const leaves = (after < POLE && after < before) || (after > Math.PI - POLE && after > before);
    return leaves ? new Quaternion() : turned;
  }

  /** Take some of the roll away, as a tripod would. */
  private level(share: number): void {
    const { view, up } = this;
    const axis = forward(view);
    const wanted = up.clone().addScaledVector(axis, -up.dot(axis));
    if (wanted.length() < 0.1) return;
    const has = new Vector3(0, -1, 0).applyQuaternion(view.rotation);
    const angle = Math.atan2(has.clone().cross(wanted).dot(axis), has.dot(wanted));
    view.rotation.premultiply(new Quaternion().setFromAxisAngle(axis, angle * Math.min(1, share))).normalize();
  }

  private pan(dx: number, dy: number): void {
    if (dx === 0 && dy === 0) return;
    const k = fitted(this.view.lens, this.element.clientWidth, this.element.clientHeight);
    const shift = new Vector3((-dx * this.view.focus) / k.fx, (-dy * this.view.focus) / k.fy, 0);
    this.view.position.add(shift.applyQuaternion(this.view.rotation));
  }

  private zoom(amount: number): void {
    if (amount === 0) return;
    const { view } = this;
    if (this.manner === "fly") {
      view.position.addScaledVector(forward(view), -0.004 * amount * this.step);
      return;
    }
    const focus = Math.min(Math.max(view.focus * Math.exp(0.0016 * amount), 1e-3 * this.sceneSize), 50 * this.sceneSize);
    view.position.addScaledVector(forward(view), view.focus - focus);
    view.focus = focus;
  }

  private get step(): number {
    return Math.min(Math.max(this.view.focus, 0.05 * this.sceneSize), this.sceneSize);
  }

  private walk(seconds: number): void {
    const shift = new Vector3();
    for (const key of this.held) if (MOVES[key]) shift.add(new Vector3(...MOVES[key]));
    if (shift.lengthSq() === 0) return;
    const speed = (this.held.has("ShiftLeft") || this.held.has("ShiftRight") ? 2.4 : 0.7) * this.step;
    this.view.position.add(shift.normalize().multiplyScalar(speed * seconds).applyQuaternion(this.view.rotation));
  }

  // Events

  private listen(): void {
    const { element } = this;
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.move(event));
    element.addEventListener("pointerup", (event) => this.release(event, true));
    element.addEventListener("pointercancel", (event) => this.release(event, false));
    element.addEventListener("contextmenu", (event) => event.preventDefault());
    element.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    window.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("keyup", (event) => this.keyUp(event));
    window.addEventListener("blur", () => this.held.clear());
  }

  private at(event: MouseEvent): [number, number] {
    const box = this.element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  private down(event: PointerEvent): void {
    const [x, y] = this.at(event);
    this.fingers.set(event.pointerId, { x, y, startX: x, startY: y, button: event.button });
    this.element.setPointerCapture(event.pointerId);
    (document.activeElement as HTMLElement | null)?.blur();
  }

  private move(event: PointerEvent): void {
    const [x, y] = this.at(event);
    const finger = this.fingers.get(event.pointerId);
    if (!finger) {
      this.events.onHover(x, y);
      return;
    }
    const dx = x - finger.x;
    const dy = y - finger.y;
    if (Math.hypot(x - finger.startX, y - finger.startY) < CLICK_PX && this.fingers.size === 1) return;
    if (this.travel) this.stop();
    if (this.fingers.size === 1) this.dragged(dx, dy, finger.button !== 0 || event.shiftKey || event.ctrlKey);
    else if (this.fingers.size === 2) this.pinched(finger, event.pointerId, x, y);
    finger.x = x;
    finger.y = y;
    this.wake();
  }

  private dragged(dx: number, dy: number, pans: boolean): void {
    this.pending[pans ? "panX" : "turnX"] += dx;
    this.pending[pans ? "panY" : "turnY"] += dy;
  }

  /** Two fingers: their middle pans, their distance zooms. */
  private pinched(finger: Finger, id: number, x: number, y: number): void {
    const other = [...this.fingers].find(([key]) => key !== id)![1];
    const before = Math.hypot(finger.x - other.x, finger.y - other.y);
    const after = Math.hypot(x - other.x, y - other.y);
    this.pending.panX += (x - finger.x) / 2;
    this.pending.panY += (y - finger.y) / 2;
    if (before > 10 && after > 10) this.pending.zoom += Math.log(before / after) / 0.0016;
    finger.startX = other.startX = -Infinity; // no click any more
  }

  private release(event: PointerEvent, counts: boolean): void {
    const finger = this.fingers.get(event.pointerId);
    this.fingers.delete(event.pointerId);
    if (!finger || !counts || finger.button !== 0) return;
    const [x, y] = this.at(event);
    if (!(Math.hypot(x - finger.startX, y - finger.startY) < CLICK_PX)) return;
    const now = performance.now();
    const twice = now - this.lastTap.time < 350 && Math.hypot(x - this.lastTap.x, y - this.lastTap.y) < 24;
    this.lastTap = { time: twice ? -Infinity : now, x, y };
    if (twice) this.events.onDoubleClick(x, y);
    else this.events.onClick(x, y);
  }

  private wheel(event: WheelEvent): void {
    event.preventDefault();
    if (this.travel) this.stop();
    const lines = event.deltaMode === 1 ? 33 : 1;
    const amount = event.deltaY * lines * (event.ctrlKey ? 6 : 1); // a pinch on a touchpad arrives as ctrl
    this.pending.zoom += Math.min(Math.max(amount, -400), 400);
    this.wake();
  }

  private key(event: KeyboardEvent): void {
    if (isTyping(event) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!(event.code in MOVES) && !event.code.startsWith("Shift")) return;
    if (this.travel && event.code in MOVES) this.stop();
    this.held.add(event.code);
    if (event.code in MOVES) this.wake();
  }

  /** Walk the rest of the way: where frames are slow, a key may come up before the next one. */
  private keyUp(event: KeyboardEvent): void {
    if (this.held.has(event.code) && this.ticking !== 0 && !this.travel) {
      const now = performance.now();
      this.walk(Math.min(LONGEST_STEP_S, (now - this.lastTick) / 1000));
      this.lastTick = now;
      this.events.onView(this.current, true);
    }
    this.held.delete(event.code);
  }
}

export function isTyping(event: KeyboardEvent): boolean {
  const target = event.target as HTMLElement | null;
  return target instanceof HTMLInputElement && target.type === "text";
}
