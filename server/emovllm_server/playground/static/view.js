// What all parts of the page are made of. Texts reach the page as text nodes alone, never as HTML.
import { h } from "./vendor/preact.js";
import { useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";

export const html = htm.bind(h);

export const percent = (share) => `${Math.round(share * 100)}%`;

/** A field for a number: what is being typed stays as it is, and counts as soon as it is one. Empty is null. */
function Typed({ value, change, ...rest }) {
  const [text, setText] = useState(null);
  const onInput = ({ target }) => {
    setText(target.value);
    if (!target.validity.badInput) change(target.value === "" ? null : Number(target.value));
  };
  return html`<input type="number" value=${text ?? value ?? ""} onInput=${onInput}
    onBlur=${() => setText(null)} ...${rest} />`;
}

/** A range and a field for the same number; the field takes numbers beyond the range, which the server may refuse. */
export function Slider({ id, label, value, min, max, step, change, hint, mark }) {
  const at = (number) => `${(100 * (Math.min(Math.max(number, min), max) - min)) / (max - min)}%`;
  const [low, high] = value < 0 ? [value, 0] : [0, value];
  const style = { "--low": at(low), "--high": at(high), "--mark-share": ((mark ?? min) - min) / (max - min) };
  const described = hint ? `${id}-hint` : undefined;
  return html`<div class=${`slider ${value ? "on" : ""}`}>
    <label for=${id}>${label}</label>
    <span class=${mark === undefined ? "track" : "track marked"} style=${style}>
      <input type="range" id=${id} min=${min} max=${max} step=${step} value=${value}
        onInput=${(event) => change(Number(event.target.value))}
        aria-describedby=${described} />
    </span>
    <${Typed} aria-label=${`${label}, as a number`} step=${step} value=${value}
      change=${(number) => number !== null && change(number)} />
    ${hint && html`<p class=${hint.wrong ? "hint wrong" : "hint"} id=${described}>${hint.text}</p>`}
  </div>`;
}

export function Field({ id, label, children, hint }) {
  return html`<div class="field">
    <label for=${id}>${label}</label>
    ${children}
    ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}
  </div>`;
}

export function NumberField({ id, label, ...rest }) {
  return html`<${Field} id=${id} label=${label}><${Typed} id=${id} ...${rest} /><//>`;
}

export function Choice({ id, label, value, options, change, hint }) {
  return html`<${Field} id=${id} label=${label} hint=${hint}>
    <select id=${id} value=${value} onChange=${(event) => change(event.target.value)}
      aria-describedby=${hint ? `${id}-hint` : undefined}>
      ${options.map(([name, text]) => html`<option value=${name} selected=${name === value}>${text}</option>`)}
    </select>
  <//>`;
}

export function Copy({ text, what }) {
  const [told, tell] = useState("");
  const copy = async (event) => {
    const block = event.target.closest(".copied").querySelector("code");
    try {
      await navigator.clipboard.writeText(text);
      tell("Copied");
    } catch {
      // Without HTTPS a browser has no clipboard for pages: what is selected can be copied by hand.
      getSelection().selectAllChildren(block);
      tell("Selected: copy it by keyboard");
    }
    setTimeout(() => tell(""), 2500);
  };
  return html`<div class="copied">
    <pre tabindex="0" role="group" aria-label=${what}><code>${text}</code></pre>
    <button type="button" class="quiet" onClick=${copy} aria-label=${`Copy ${what}`}>${told || "Copy"}</button>
    <span class="unseen" role="status">${told}</span>
  </div>`;
}
