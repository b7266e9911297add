// Distances between points that the user clicks, drawn over the picture.
import { Vector3 } from "three";
import { type View, project } from "./view";

export interface Measurement {
  a: Vector3;
  b: Vector3;
  distance: number;
}

const SVG = "http://www.w3.org/2000/svg";

export class Measuring {
  readonly measurements: Measurement[] = [];
  private start: Vector3 | null = null;
  private cursor: Vector3 | null = null;

  constructor(
    private readonly svg: SVGSVGElement,
    private readonly labels: HTMLElement,
    private readonly text: (distance: number) => string,
  ) {}

  get pending(): boolean {
    return this.start !== null;
  }

  /** Take a point; every second one completes a measurement, which is returned. */
  add(point: Vector3): Measurement | null {
    if (!this.start) {
      this.start = point.clone();
      return null;
    }
    const measurement = { a: this.start, b: point.clone(), distance: this.start.distanceTo(point) };
    this.measurements.push(measurement);
    this.start = this.cursor = null;
    return measurement;
  }

  /** Where the second point would be. */
  hover(point: Vector3 | null): void {
    this.cursor = point;
  }

  /** Drop the first point of a pair, or else everything. */
  clear(): void {
    if (this.start) this.start = this.cursor = null;
    else this.measurements.length = 0;
  }

  draw(view: View, width: number, height: number): void {
    this.svg.replaceChildren();
    this.labels.replaceChildren();
    const place = (p: Vector3) => project(view, width, height, p);
    for (const { a, b, distance } of this.measurements) this.segment(place(a), place(b), distance, false);
    if (!this.start) return;
    if (this.cursor) this.segment(place(this.start), place(this.cursor), this.start.distanceTo(this.cursor), true);
    else this.dot(place(this.start));
  }

  private segment(a: Pixel, b: Pixel, distance: number, pending: boolean): void {
    if (a.depth <= 0 || b.depth <= 0) {
      for (const p of [a, b]) this.dot(p);
      return;
    }
    for (const kind of ["halo", pending ? "line pending" : "line"]) {
      const ends = { x1: a.u, y1: a.v, x2: b.u, y2: b.v };
      this.svg.append(element("line", { ...ends, class: kind }));
    }
    this.dot(a);
    this.dot(b);
    const label = document.createElement("div");
    label.textContent = this.text(distance);
    label.style.transform = `translate(${(a.u + b.u) / 2}px, ${(a.v + b.v) / 2}px) translate(-50%, -150%)`;
    this.labels.append(label);
  }

  private dot(p: Pixel): void {
    if (p.depth > 0) this.svg.append(element("circle", { cx: p.u, cy: p.v, r: 4.5 }));
  }
}

interface Pixel {
  u: number;
  v: number;
  depth: number;
}

function element(name: string, attributes: Record<string, string | number>): SVGElement {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}

/** A length in words: metres, or units of a scene whose scale is not known. */
export function lengthText(distance: number, metric: boolean, digits = 3): string {
  if (!metric) return `${round(distance, digits)} units`;
  if (distance < 0.01) return `${round(1000 * distance, digits)} mm`;
  if (distance < 1) return `${round(100 * distance, digits)} cm`;
  return `${round(distance, digits)} m`;
}

function round(value: number, digits: number): string {
  const fixed = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.max(Math.abs(value), 1e-12))));
  return value.toFixed(Math.min(fixed, 12));
}
