// A line of numbers, the newest at the right, from nothing to the largest of them, or to a whole that they are
// parts of.

const NAMESPACE = "http://www.w3.org/2000/svg";
const WIDTH = 180;
const HEIGHT = 40;
const STEPS = 90;

export function chart(name) {
  const svg = document.createElementNS(NAMESPACE, "svg");
  svg.setAttribute("class", "chart");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const line = document.createElementNS(NAMESPACE, "polyline");
  for (const [key, value] of Object.entries({ fill: "none", stroke: "currentColor", "stroke-width": "1.5", "vector-effect": "non-scaling-stroke" })) {
    line.setAttribute(key, value);
  }
  svg.append(line);
  svg.show = (numbers, shown, whole = 0) => {
    const most = Math.max(1e-9, whole, ...numbers);
    const step = WIDTH / (STEPS - 1);
    const first = WIDTH - (numbers.length - 1) * step;
    const at = (n, i) => `${(first + i * step).toFixed(1)},${(HEIGHT - 1 - (n / most) * (HEIGHT - 3)).toFixed(1)}`;
    line.setAttribute("points", numbers.map(at).join(" "));
    svg.setAttribute("aria-label", `${name}: ${shown}`);
  };
  return svg;
}
