// Starts the player when the page is there, and says in words what keeps it from starting.
import { DamagedError, readScene } from "./data";
import { Player } from "./player";

declare global {
  interface Window {
    geo4d?: { ready: Promise<void> } & Partial<ReturnType<Player["api"]>>;
  }
}

/** Let the browser show what it has before a long piece of work. */
function painted(): Promise<void> {
  return new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 0)));
}

function fail(title: string, text: string): void {
  document.documentElement.dataset.state = "failed";
  const box = document.querySelector("#message > div");
  if (!box) return;
  const heading = document.createElement("h2");
  heading.textContent = title;
  const paragraph = document.createElement("p");
  paragraph.textContent = text;
  box.replaceChildren(heading, paragraph);
}

async function start(): Promise<void> {
  const scene = readScene();
  document.title = `${scene.name} · geo4d`;
  if (!document.createElement("canvas").getContext("webgl2")) {
    throw new DamagedError(
      "This browser offers no WebGL 2, which draws the scene. Switch on hardware acceleration in its settings, update it, or open the " +
        "file in a current version of Chrome, Edge, Firefox or Safari.",
    );
  }
  await painted();
  const player = new Player(scene);
  document.getElementById("view")!.addEventListener("webglcontextlost", () =>
    fail("The picture was lost", "The graphics of this computer were reset. Load the page again."),
  );
  await player.load();
  Object.assign(window.geo4d!, player.api());
  document.documentElement.dataset.state = "ready";
}

const loaded = new Promise<void>((resolve) => {
  if (document.readyState !== "loading") resolve();
  else document.addEventListener("DOMContentLoaded", () => resolve());
});
const ready = loaded.then(start);
window.geo4d = { ready };
ready.catch((error: unknown) => {
  const text = error instanceof Error ? error.message : String(error);
  fail("This scene cannot be shown", text);
  if (!(error instanceof DamagedError)) console.error(error);
});
