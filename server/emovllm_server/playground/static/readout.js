// What the states that wrote a reply read as: tokens in colour, a chart, a table.
import { useMemo, useState } from "./vendor/hooks.js";
import { html, percent } from "./view.js";

const NEUTRAL = "neutral";
// Labels that have a colour of their own; all others take the rest in turn.
const KNOWN = {
  anger: "red",
  annoyance: "red",
  disapproval: "red",
  rage: "red",
  sadness: "blue",
  grief: "blue",
  disappointment: "blue",
  remorse: "blue",
  happiness: "yellow",
  joy: "yellow",
  amusement: "yellow",
  optimism: "yellow",
  fear: "purple",
  nervousness: "purple",
  surprise: "teal",
  realization: "teal",
  curiosity: "teal",
  confusion: "teal",
  disgust: "green",
  embarrassment: "green",
  love: "pink",
  caring: "pink",
  admiration: "pink",
  gratitude: "pink",
  desire: "pink",
  [NEUTRAL]: "grey",
};
const OTHERS = ["brown", "teal", "pink", "blue", "green", "purple", "yellow", "red"];
// Lines are told apart without colours, too.
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 4"];
const LINES = 6;

export const colour = (labels, label) => KNOWN[labels[label]] ?? OTHERS[label % OTHERS.length];

/** The likeliest label but neutral. */
function leading(labels, reading) {
  return reading.reduce(
    (best, value, label) => (labels[label] !== NEUTRAL && (best < 0 || value > reading[best]) ? label : best),
    -1,
  );
}

/** The likeliest labels in words, as many as `most`. */
export function inWords(labels, reading, most = 3) {
  const order = labels.map((_, label) => label).sort((a, b) => reading[b] - reading[a]);
  return order
    .slice(0, most)
    .map((label) => `${labels[label]} ${percent(reading[label])}`)
    .join(", ");
}

/** The reply, whose tokens are coloured by what leads in them. Arrow keys go from token to token. */
export function Tokens({ turn, name, cursor, point }) {
  const last = turn.pieces.length - 1;
  const read = turn.readings.length > 0;
  const spans = useMemo(
    () => turn.pieces.map((piece, index) => Token(turn, piece, index, index === cursor)),
    [turn.version, cursor],
  );
  const move = (event) => {
    const to = {
      ArrowRight: (cursor ?? -1) + 1,
      ArrowLeft: (cursor ?? last + 1) - 1,
      Home: 0,
      End: last,
      Escape: null,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    point(to === null ? null : Math.min(Math.max(to, 0), last));
  };
  const over = (event) => point(event.target.dataset?.index === undefined ? null : Number(event.target.dataset.index));
  const keys = read
    ? {
        tabindex: 0,
        role: "group",
        "aria-label": `${name}; arrow keys go from token to token`,
        onKeyDown: move,
        onMouseOver: over,
        onMouseLeave: () => point(null),
        onBlur: () => point(null),
      }
    : {};
  const pointed = cursor === null ? undefined : turn.pieces[cursor];
  const said = pointed?.reading ? inWords(turn.labels, pointed.reading) : "was not read";
  return html`<div class="tokens" ...${keys}>
      ${spans}${turn.state === "writing" && html`<span class="caret" aria-hidden="true"></span>`}
    </div>
    ${
      read &&
      html`<p class="inspector" role="status">
      ${pointed && html`<q>${pointed.text.trim() || "space"}</q> ${said}`}
    </p>`
    }`;
}

function Token(turn, { text, thought, reading }, index, pointed) {
  const kind = `${thought ? "thought" : ""} ${pointed ? "cursor" : ""}`;
  if (!reading) return html`<span class=${kind} data-index=${index}>${text}</span>`;
  const label = leading(turn.labels, reading);
  const style = { "--share": reading[label].toFixed(3) };
  return html`<span class=${`token ${colour(turn.labels, label)} ${kind}`} style=${style} data-index=${index}
    title=${inWords(turn.labels, reading)}>${text}</span>`;
}

/** A dash for each of these labels: in all replies the same, but where two of them would share one. */
function dashes(shown) {
  const taken = new Map();
  for (const label of shown) {
    const free = DASHES.map((_, step) => (label + step) % DASHES.length).find(
      (dash) => ![...taken.values()].includes(dash),
    );
    taken.set(label, free);
  }
  return (label) => DASHES[taken.get(label)];
}

/** Lines over the reply's tokens for the labels that are likeliest in it, and their legend. */
export function Chart({ turn, cursor }) {
  const { labels, readings } = turn;
  const count = readings.length;
  const means = labels.map((_, label) => readings.reduce((sum, reading) => sum + reading[label], 0) / count);
  const shown = labels
    .map((_, label) => label)
    .sort((a, b) => means[b] - means[a])
    .slice(0, LINES);
  const dash = dashes(shown);
  const x = (token) => (count === 1 ? 300 : (600 * token) / (count - 1));
  const line = (label) =>
    readings.map((reading, token) => `${x(token).toFixed(1)},${(100 - 100 * reading[label]).toFixed(1)}`).join(" ");
  const at = cursor === null ? null : turn.pieces[cursor]?.at;
  return html`<figure class="chart">
    <div class="plot">
      <svg viewBox="0 0 600 100" preserveAspectRatio="none" role="img"
        aria-label=${`Probabilities over ${count} tokens; on average ${inWords(labels, means)}`}>
        ${[25, 50, 75].map((y) => html`<line class="grid" x1="0" x2="600" y1=${y} y2=${y} />`)}
        ${shown.map(
          (label) => html`<polyline class=${colour(labels, label)} points=${line(label)}
          stroke-dasharray=${dash(label)} />`,
        )}
        ${at !== null && at !== undefined && html`<line class="at" x1=${x(at)} x2=${x(at)} y1="0" y2="100" />`}
      </svg>
      <span class="axis top" aria-hidden="true">100%</span><span class="axis bottom" aria-hidden="true">0</span>
      <span class="axis end" aria-hidden="true">${count} ${count === 1 ? "token" : "tokens"}</span>
    </div>
    <figcaption><ul class="legend" aria-label="Mean over the reply so far">
      ${shown.map(
        (label) => html`<li>
        <svg viewBox="0 0 24 8" aria-hidden="true"><line class=${colour(labels, label)} x1="0" x2="24" y1="4" y2="4"
          stroke-dasharray=${dash(label)} /></svg>
        ${labels[label]} <b>${percent(means[label])}</b></li>`,
      )}
    </ul></figcaption>
  </figure>`;
}

/** What the server tells at a reply's end. */
export function Table({ turn }) {
  const { prompt, reply } = turn.read;
  const labels = [...turn.labels].sort((a, b) => reply[b] - reply[a]);
  return html`<details class="table"><summary>Read-out as a table</summary>
    <table>
      <thead><tr><th scope="col">label</th><th scope="col">at the prompt's end</th>
        <th scope="col">mean over the reply</th></tr></thead>
      <tbody>${labels.map(
        (label) =>
          html`<tr><th scope="row">${label}</th><td>${percent(prompt[label])}</td><td>${percent(reply[label])}</td>
        </tr>`,
      )}</tbody>
    </table>
  </details>`;
}

/** A reply with what was read of it. latest: with its chart. */
export function Reply({ turn, name, latest }) {
  const [cursor, point] = useState(null);
  return html`<${Tokens} turn=${turn} name=${name} cursor=${cursor} point=${point} />
    ${latest && turn.readings.length > 0 && html`<${Chart} turn=${turn} cursor=${cursor} />`}
    ${latest && turn.read && html`<${Table} turn=${turn} />`}`;
}
