// The time of a scene: how it runs with the clock, what it does at its ends, and how it goes from frame to frame.

export const SPEEDS: readonly number[] = [0.1, 0.25, 0.5, 1, 2, 4];
/** At the end: begin again, go back and forth, or stop. */
export const ENDS = ["loop", "pingpong", "once"] as const;
export type Ends = (typeof ENDS)[number];

/** Two times that differ by less are the same. */
const SAME_S = 1e-6;
/** A clock that stood longer, as in a window behind others, does not leap. */
const LONGEST_STEP_S = 1;

export interface PlaybackEvents {
  onTime: (time_s: number) => void;
  /** Whether it plays, how fast, or what it does at the ends has changed. */
  onState: () => void;
}

export class Playback {
  time_s: number;
  playing = false;
  speed = 1;
  ends: Ends = "loop";
  private direction: 1 | -1 = 1;
  private held = false;
  private run = 0;

  /** `frames_s`: the times of frames, in order. */
  constructor(
    private readonly start_s: number,
    private readonly end_s: number,
    private readonly frames_s: readonly number[],
    private readonly events: PlaybackEvents,
  ) {
    this.time_s = start_s;
  }

  /** Be at a time, or at the end that is nearest to it. */
  set(time_s: number): void {
    this.time_s = Math.min(Math.max(time_s, this.start_s), this.end_s);
    this.events.onTime(this.time_s);
  }

  toggle(): void {
    if (this.playing) this.pause();
    else this.play();
  }

  play(): void {
    if (this.playing) return;
    this.playing = true;
    this.direction = 1;
    if (this.ends === "once" && this.time_s > this.end_s - SAME_S) this.set(this.start_s);
    const run = ++this.run; // whatever was asked of the browser before a pause goes on no more
    let last = performance.now();
    const tick = (now: number) => {
      if (!this.playing || run !== this.run) return;
      if (!this.held) this.advance(Math.min(Math.max(now - last, 0) / 1000, LONGEST_STEP_S));
      last = now;
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
    this.events.onState();
  }

  pause(): void {
    this.playing = false;
    this.events.onState();
  }

  /** While time is in a hand the clock stands. */
  hold(held: boolean): void {
    this.held = held;
  }

  /** Go on by so many seconds of the clock. */
  advance(seconds: number): void {
    const { start_s, end_s, ends } = this;
    const span = end_s - start_s;
    const step = seconds * this.speed;
    const at = this.time_s - start_s;
    if (ends === "loop") this.set(start_s + modulo(at + step, span));
    else if (ends === "pingpong") {
      const there = modulo((this.direction > 0 ? at : 2 * span - at) + step, 2 * span);
      this.direction = there < span ? 1 : -1;
      this.set(start_s + (there < span ? there : 2 * span - there));
    } else {
      this.set(this.time_s + step);
      if (at + step >= span) this.pause();
    }
  }

  /** To the next frame, or the one before; from an end on to the other one, unless time stops there. */
  step(by: 1 | -1): void {
    const { frames_s, time_s } = this;
    const ahead = frames_s.filter((t) => (t - time_s) * by > SAME_S);
    const beyond = this.ends === "once" ? [by > 0 ? this.end_s : this.start_s] : frames_s;
    const [first, last] = [ahead, beyond].map((times) => times.at(by > 0 ? 0 : -1));
    this.pause();
    this.set((first ?? last)!);
  }

  setSpeed(speed: number): void {
    if (!(speed > 0 && Number.isFinite(speed))) throw new RangeError(`no speed ${speed}`);
    this.speed = speed;
    this.events.onState();
  }

  /** The next of `SPEEDS`. */
  changeSpeed(by: 1 | -1): void {
    const beyond = SPEEDS.filter((s) => (s - this.speed) * by > 0);
    this.setSpeed(beyond.at(by > 0 ? 0 : -1) ?? this.speed);
  }

  setEnds(ends: Ends): void {
    if (!ENDS.includes(ends)) throw new RangeError(`no way to end ${ends}; there are ${ENDS.join(", ")}`);
    this.ends = ends;
    this.events.onState();
  }
}

function modulo(value: number, span: number): number {
  return ((value % span) + span) % span;
}
