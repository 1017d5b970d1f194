// What a user sets: emotions, how strong, when and where, and the request around them.
import { instructionOf, largest, mixOf, scheduleOf, share } from "./request.js";
import { Choice, Field, html, NumberField, Slider } from "./view.js";

const SCOPES = {
  "": "The circuit's own",
  generation: "The reply (and the prompt's last token)",
  prompt_last: "The prompt's last token alone",
  all: "The whole prompt and the reply",
};
// Where the server can tell thinking.
const ANSWER = { answer: "The answer, without the thinking" };
const SCHEDULES = {
  level: "Level, or the server's default",
  fade: "Held, then halved",
  window: "From one token to another",
  points: "A line through points",
};
// Of the preview, in tokens.
const PREVIEW = 120;

export function Controls({ settings, set, about }) {
  return html`
    ${
      about.models.length > 1 &&
      html`<section><${Choice} id="model" label="Model" value=${settings.model}
      options=${about.models.map((id) => [id, id])} change=${(model) => set({ model })} /></section>`
    }
    ${about.emotions.length > 0 && html`<${Emotions} settings=${settings} set=${set} about=${about} />`}
    ${about.emotions.length > 0 && html`<${When} settings=${settings} set=${set} about=${about} />`}
    <${Around} settings=${settings} set=${set} about=${about} />
    <${Circuits} about=${about} />`;
}

function Emotions({ settings, set, about }) {
  const circuits = about.circuits.filter((circuit) => about.emotions.some((emotion) => emotion.circuit === circuit.id));
  const weigh = (emotion, weight) => {
    // A blend is of one circuit.
    const kept = Object.entries(settings.weights).filter(([name]) =>
      about.emotions.some((other) => other.id === name && other.circuit === emotion.circuit),
    );
    set({ weights: { ...Object.fromEntries(kept), [emotion.id]: weight } });
  };
  const cap = largest(settings, about);
  const over = Math.abs(settings.strength) > cap * (1 + 1e-9);
  const allowed = Number.isFinite(cap) ? `${(Math.floor(cap * 100 + 1e-6) / 100).toString()}` : "";
  const top = Math.ceil(Math.max(2, ...about.emotions.map((emotion) => emotion.max_strength)) * 10 + 1) / 10;
  const hint = !allowed
    ? { text: "No emotion is set: the steered reply is the plain one." }
    : over
      ? { text: `Over the cap of ${allowed} for these emotions: the server will refuse it.`, wrong: true }
      : { text: `1 is the circuit's recommendation; the cap for these emotions is ${allowed}.` };
  return html`<section aria-labelledby="emotions-title">
    <div class="head"><h2 id="emotions-title">Emotions</h2>
      <button type="button" class="quiet" onClick=${() => set({ weights: {} })}
        disabled=${!Object.keys(mixOf(settings)).length}>None</button></div>
    ${circuits.map(
      (circuit) => html`<fieldset>
      <legend class=${circuits.length > 1 ? "" : "unseen"}>Circuit ${circuit.id}</legend>
      ${about.emotions
        .filter((emotion) => emotion.circuit === circuit.id)
        .map(
          (
            emotion,
          ) => html`<${Slider} key=${emotion.id} id=${`emotion-${emotion.id}`} label=${emotion.id.split("/").pop()}
        value=${settings.weights[emotion.id] ?? 0} min=${-1} max=${1} step=${0.05} mark=${0}
          change=${(weight) => weigh(emotion, weight)} />`,
        )}
    </fieldset>`,
    )}
    <div class="strength"><${Slider} id="strength" label="Strength" value=${settings.strength} min=${0} max=${top}
      step=${0.05} mark=${1} change=${(strength) => set({ strength })} hint=${hint} /></div>
  </section>`;
}

function When({ settings, set, about }) {
  const scopes = { ...SCOPES, ...(about.phases.includes("thinking") && ANSWER) };
  const schedule = (changed) => set({ schedule: { ...settings.schedule, ...changed } });
  const { form, hold, half_life, from, to, points } = settings.schedule;
  return html`<section aria-labelledby="when-title">
    <div class="head"><h2 id="when-title">When and where</h2></div>
    <${Choice} id="schedule" label="Schedule" value=${form} options=${Object.entries(SCHEDULES)}
      change=${(chosen) => schedule({ form: chosen })} />
    ${
      form === "fade" &&
      html`<div class="pair">
      <${NumberField} id="hold" label="Held, tokens" min="0" value=${hold}
        change=${(value) => schedule({ hold: value ?? 0 })} />
      <${NumberField} id="half-life" label="Half-life, tokens" min="1" value=${half_life}
        change=${(value) => schedule({ half_life: value ?? 1 })} /></div>`
    }
    ${
      form === "window" &&
      html`<div class="pair">
      <${NumberField} id="from" label="From token" min="0" value=${from}
        change=${(value) => schedule({ from: value ?? 0 })} />
      <${NumberField} id="to" label="To before token" min="1" value=${to}
        change=${(value) => schedule({ to: value })} /></div>`
    }
    ${
      form === "points" &&
      html`<${Field} id="points" label="Points, token:share" hint="Shares from 0 to 1; straight lines between.">
      <input id="points" value=${points} aria-describedby="points-hint"
        onInput=${(event) => schedule({ points: event.target.value })} /><//>`
    }
    ${form !== "level" && html`<${Shares} schedule=${scheduleOf(settings.schedule)} />`}
    <${Choice} id="scope" label="Scope" value=${settings.scope} options=${Object.entries(scopes)}
      change=${(scope) => set({ scope })} />
    ${
      about.reading &&
      html`<${NumberField} id="target" label="Hold what is read at (0 to 1, empty: not)" min="0" max="1" step="0.05"
        value=${settings.target} change=${(target) => set({ target })} />`
    }
    <label class="check"><input type="checkbox" checked=${settings.worded}
      onChange=${(event) => set({ worded: event.target.checked })} />
      Ask for the emotion in words as well</label>
  </section>`;
}

/** A schedule's shares over the first tokens. */
function Shares({ schedule }) {
  if (typeof schedule === "string") return null;
  const tokens = Array.from({ length: PREVIEW + 1 }, (_, token) => token);
  const points = tokens.map((token) => `${token},${38 - 36 * share(schedule, token)}`).join(" ");
  return html`<svg class="shares" viewBox="0 0 ${PREVIEW} 40" preserveAspectRatio="none" role="img"
    aria-label=${`The share of the strength over ${PREVIEW} tokens`}>
    <polyline points=${points} /></svg>`;
}

function Around({ settings, set, about }) {
  return html`<section aria-labelledby="around-title">
    <div class="head"><h2 id="around-title">Request</h2></div>
    <${Field} id="system" label="System prompt"><textarea id="system" rows="2" value=${settings.system}
      onInput=${(event) => set({ system: event.target.value })}></textarea><//>
    <${Field} id="instruction" label="Instruction of the prompted column"
      hint="Stands in the system turn, below the system prompt.">
      <textarea id="instruction" rows="2" value=${instructionOf(settings)} aria-describedby="instruction-hint"
        onInput=${(event) => set({ instruction: event.target.value })}></textarea>
      ${
        settings.instruction !== null &&
        html`<button type="button" class="quiet"
        onClick=${() => set({ instruction: null })}>As the emotions say</button>`
      }
    <//>
    <div class="three">
      <${NumberField} id="temperature" label="Temperature" min="0" step="0.1" value=${settings.temperature}
        change=${(temperature) => set({ temperature })} />
      <${NumberField} id="max-tokens" label="Max tokens" min="1" step="1" value=${settings.max_tokens}
        change=${(max_tokens) => set({ max_tokens })} />
      <${NumberField} id="seed" label="Seed" step="1" value=${settings.seed} change=${(seed) => set({ seed })} />
    </div>
    ${
      about.reading
        ? html`<label class="check"><input type="checkbox" checked=${settings.read}
          onChange=${(event) => set({ read: event.target.checked })} />
          Read each token (layer ${about.reading.layer})</label>`
        : html`<p class="hint">Nothing is read on this server: it was started without <code>--readout</code>.</p>`
    }
  </section>`;
}

function Circuits({ about }) {
  return html`<section><details class="circuits"><summary>Circuits and caps</summary>
    ${about.circuits.map(
      (circuit) => html`<div key=${circuit.id}>
      <p><b>${circuit.id}</b> of ${circuit.model}<br />scope <code>${circuit.scope}</code>, digest <code>
        ${circuit.digest.slice(0, 12)}</code></p>
      <table>
        <thead><tr><th scope="col">emotion</th><th scope="col">largest strength</th></tr></thead>
        <tbody>${about.emotions
          .filter((emotion) => emotion.circuit === circuit.id)
          .map(
            (emotion) =>
              html`<tr><th scope="row">${emotion.id}</th><td>${Number(emotion.max_strength.toFixed(3))}</td>
          </tr>`,
          )}</tbody>
      </table></div>`,
    )}
    ${!about.circuits.length && html`<p>This server adds no emotions.</p>`}
    ${
      about.reading &&
      html`<p>Read after layer ${about.reading.layer} by probe <code>
      ${about.reading.probe.slice(0, 12)}</code>: ${about.reading.labels.join(", ")}.</p>`
    }
    ${about.guards.map(
      ({ guard, action }) => html`<p key=${guard}>Guard <code>${guard}</code>: ${action}.</p>`,
    )}
  </details></section>`;
}
