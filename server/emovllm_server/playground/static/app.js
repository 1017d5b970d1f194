// The page: its settings, two columns of replies to the same messages, and the request to copy.
import { render } from "./vendor/preact.js";
import { useEffect, useLayoutEffect, useMemo, useReducer, useRef, useState } from "./vendor/hooks.js";
import { Column, KINDS } from "./chat.js";
import { Controls } from "./controls.js";
import { inWords, Reply } from "./readout.js";
import { bodyOf, curl, defaults, modelName, python } from "./request.js";
import * as server from "./server.js";
import { Copy, html } from "./view.js";

const SIDES = ["Left", "Right"];
const MEANINGS = {
  plain: "the model as it is",
  prompted: "asked for the emotion in words",
  steered: "with the circuit",
};

/** A component's next drawing, once a frame at most: chunks come faster than screens draw. */
function useDrawing() {
  const [, draw] = useReducer((times) => times + 1, 0);
  const asked = useRef(0);
  return () => {
    asked.current ||= setTimeout(() => {
      asked.current = 0;
      draw();
    }, 16);
  };
}

function App() {
  const [about, setAbout] = useState(null);
  const [trouble, setTrouble] = useState("");
  const [asking, setAsking] = useState(false);
  const [settings, setSettings] = useState(defaults);
  const [draft, setDraft] = useState("");
  const [news, setNews] = useState("");
  const [open, setOpen] = useState(false);
  const columns = useRef([new Column("plain"), new Column("steered")]).current;
  const running = useRef(null);
  const message = useRef(null);
  const draw = useDrawing();
  const set = (changed) => setSettings((before) => ({ ...before, ...changed }));

  const load = async () => {
    setTrouble("");
    try {
      const found = await server.about();
      setAbout(found);
      setAsking(false);
      const first = found.emotions[0]?.id;
      setSettings((before) =>
        before.model ? before : { ...before, model: found.models[0], weights: first ? { [first]: 1 } : {} },
      );
    } catch (error) {
      if (error.status === 401) setAsking(true);
      else setTrouble(error.message);
    }
  };
  useEffect(() => void load(), []);

  const answer = async (user) => {
    const controller = (running.current = new AbortController());
    setNews("Both columns are being written.");
    draw();
    const each = columns.map((column) => column.answer(user, settings, about, controller.signal, draw));
    const ended = await Promise.allSettled(each);
    running.current = null;
    if (ended.some((one) => one.reason?.status === 401)) {
      // What was not answered is asked again with the key.
      for (const column of columns) column.turns = column.turns.filter((turn) => turn.user !== user || turn.text);
      setDraft(user);
      setAsking(true);
    } else setNews(columns.map(spoken).join(" "));
    draw();
  };
  const send = () => {
    const user = draft.trim();
    if (!user || running.current) return;
    setDraft("");
    answer(user);
  };
  const again = () => {
    const user = columns[0].turns.at(-1)?.user;
    for (const column of columns) column.turns.pop();
    answer(user);
  };
  const clear = () => {
    for (const column of columns) column.turns = [];
    setNews("The conversation is cleared.");
    draw();
    message.current?.focus();
  };
  const onKeyDown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };

  const controls = useMemo(
    () => about && html`<${Controls} settings=${settings} set=${set} about=${about} />`,
    [settings, about],
  );
  const writing = running.current !== null;
  const empty = columns[0].turns.length === 0;
  return html`
    <a class="skip" href="#message">Skip to the message</a>
    <header>
      <h1>emovllm <span>playground</span></h1>
      <p class="model">${settings.model}</p>
      ${
        server.key() &&
        html`<button type="button" class="quiet"
        onClick=${() => setAsking(true)}>Change key</button>`
      }
      ${
        about &&
        html`<button type="button" class="quiet toggle" aria-expanded=${open} aria-controls="controls"
        onClick=${() => setOpen(!open)}>Settings</button>`
      }
    </header>
    ${
      trouble &&
      html`<div class="trouble" role="alert"><p>${trouble}</p><button type="button"
      onClick=${load}>Try again</button></div>`
    }
    ${
      about &&
      html`<div class="body">
      <aside id="controls" class=${open ? "open" : ""} aria-label="Settings" tabindex="0">${controls}</aside>
      <main>
        <div class="columns">${columns.map(
          (column, side) => html`<${Conversation} key=${side} column=${column}
          side=${side} draw=${draw} writing=${writing} />`,
        )}</div>
        <form class="composer" onSubmit=${(event) => (event.preventDefault(), send())}>
          <label for="message" class="unseen">Message to both columns</label>
          <textarea id="message" ref=${message} rows="2" placeholder="Write to both columns …" value=${draft}
            onInput=${(event) => setDraft(event.target.value)} onKeyDown=${onKeyDown}></textarea>
          <div class="buttons">
            ${
              writing
                ? html`<button type="button" class="main" onClick=${() => running.current?.abort()}>Stop</button>`
                : html`<button type="submit" class="main" disabled=${!draft.trim()}>Send</button>`
            }
            <button type="button" onClick=${again} disabled=${writing || empty}>Answer again</button>
            <button type="button" onClick=${clear} disabled=${writing || empty}>Clear</button>
          </div>
        </form>
        <${Request} columns=${columns} settings=${settings} about=${about} draft=${draft} />
      </main>
    </div>`
    }
    <p class="unseen" role="status" id="news">${news}</p>
    ${asking && html`<${Key} done=${load} close=${about && (() => setAsking(false))} />`}`;
}

/** A column's last reply for who hears it. */
function spoken(column) {
  const turn = column.turns.at(-1);
  const said = turn.error ? `failed: ${turn.error}` : turn.text || "wrote nothing.";
  return `${KINDS[turn.kind]}: ${said}`;
}

function Conversation({ column, side, draw, writing }) {
  const box = useRef(null);
  const kept = useRef(true); // at its end, and to be kept there
  useLayoutEffect(() => {
    if (kept.current) box.current.scrollTop = box.current.scrollHeight;
  });
  const onScroll = ({ target }) => (kept.current = target.scrollHeight - target.scrollTop - target.clientHeight < 60);
  const choose = (event) => {
    column.kind = event.target.value;
    draw();
  };
  const id = `kind-${side}`;
  return html`<section class="column" aria-label=${`${SIDES[side]} column, ${KINDS[column.kind].toLowerCase()}`}>
    <div class="head"><label for=${id} class="unseen">${SIDES[side]} column</label>
      <select id=${id} value=${column.kind} onChange=${choose}
        disabled=${writing}>${Object.entries(KINDS).map(
          ([kind, text]) => html`<option value=${kind}
        selected=${kind === column.kind}>${text}</option>`,
        )}</select>
      <span class="what">${MEANINGS[column.kind]}</span></div>
    <div class="turns" ref=${box} onScroll=${onScroll} tabindex="0" role="region"
      aria-label=${`${SIDES[side]} conversation`}>
      ${!column.turns.length && html`<p class="nothing">Replies appear here.</p>`}
      ${column.turns.map(
        (turn, at) => html`<article key=${turn.began} class="turn">
        <p class="user"><span class="unseen">You: </span>${turn.user}</p>
        <div class="reply" aria-busy=${turn.state === "writing"}>
          <${Reply} turn=${turn} name=${`${KINDS[turn.kind]} reply`} latest=${at === column.turns.length - 1} />
          ${turn.error && html`<p class="error" role="alert">${turn.error}</p>`}
          <p class="meta">${inALine(turn)}</p>
        </div></article>`,
      )}
    </div>
  </section>`;
}

/** A reply in a line: what was applied, how it reads, how long it took. */
function inALine(turn) {
  const { applied } = turn;
  const parts = [KINDS[turn.kind].toLowerCase()];
  if (applied) {
    const mix = Object.entries(applied.mix).map(([name, weight]) => (weight === 1 ? name : `${name} ${weight}`));
    parts.push(mix.join(", "), `strength ${applied.strength}`, applied.scope);
    if (applied.prompt) parts.push(`prompt ${applied.prompt}`);
    if (applied.target) parts.push(`held at ${applied.target.level}`);
  }
  for (const { guard, action, token } of turn.acted) parts.push(`guard ${guard}: ${action} at token ${token}`);
  if (turn.read)
    parts.push(
      `reads as ${inWords(
        turn.labels,
        turn.labels.map((label) => turn.read.reply[label]),
        1,
      )}`,
    );
  if (turn.state !== "writing") parts.push(turn.state, `${turn.seconds.toFixed(1)} s`);
  return parts.join(" · ");
}

function Request({ columns, settings, about, draft }) {
  const [side, setSide] = useState(1);
  const [form, setForm] = useState("curl");
  const column = columns[side];
  // What was written last, where nothing new is.
  const last = column.turns.at(-1);
  const user = draft.trim() || last?.user || "Hello";
  const earlier = Object.assign(new Column(column.kind), {
    turns: draft.trim() ? column.turns : column.turns.slice(0, -1),
  });
  const body = bodyOf(column.kind, settings, earlier.said(user), about);
  const named = modelName(settings);
  const beside = named && named.strength !== 1 ? `, to which emotion_strength ${named.strength} would belong` : "";
  const texts = { curl: curl(body), python: python(body), model: named?.name };
  return html`<details class="request"><summary>The request to copy</summary>
    <div class="forms">
      <label for="of">Of the column</label> <select id="of" value=${side}
        onChange=${(event) => setSide(Number(event.target.value))}>
        ${SIDES.map(
          (name, at) => html`<option value=${at}
          selected=${at === side}>${name}: ${KINDS[columns[at].kind].toLowerCase()}</option>`,
        )}</select>
      <label for="as">as</label> <select id="as" value=${form} onChange=${(event) => setForm(event.target.value)}>
        ${[
          ["curl", "curl"],
          ["python", "Python"],
          ["model", "a model's name"],
        ].map(([name, text]) => html`<option value=${name} selected=${name === form}>${text}</option>`)}</select>
    </div>
    ${
      texts[form]
        ? html`<${Copy} text=${texts[form]}
          what=${{ curl: "curl command", python: "Python code", model: "model's name" }[form]} />`
        : html`<p class="hint">No name says these emotions: names are for one, or several in equal parts.</p>`
    }
    ${form === "model" && named && html`<p class="hint">
      For clients that send no further fields; it means the emotions alone${beside}.</p>`}
  </details>`;
}

function Key({ done, close }) {
  const dialog = useRef(null);
  const [wrong, setWrong] = useState(Boolean(server.key()) && !close);
  const [text, setText] = useState("");
  useEffect(() => dialog.current.showModal(), []);
  const submit = async (event) => {
    event.preventDefault();
    server.keep(text.trim());
    await done();
    setWrong(true); // otherwise this is gone by now
  };
  const cancel = (event) => {
    if (close) close();
    else event.preventDefault();
  };
  return html`<dialog ref=${dialog} aria-labelledby="key-title" onCancel=${cancel}>
    <form onSubmit=${submit}>
      <h2 id="key-title">This server asks for a key</h2>
      <p id="key-hint">
        ${wrong ? "The key that was given is not the server's. " : ""}It is the one of <code>--api-key</code>.
        ${" "}This tab keeps it until it is closed, and sends it to this server alone.</p>
      <label for="key">API key</label>
      <input id="key" type="password" autocomplete="off" value=${text} aria-describedby="key-hint"
        onInput=${(event) => setText(event.target.value)} required />
      <div class="buttons"><button type="submit" class="main">Use it</button>${
        close &&
        html`<button type="button"
        onClick=${close}>Cancel</button>`
      }</div>
    </form>
  </dialog>`;
}

const place = document.getElementById("app");
place.replaceChildren();
render(html`<${App} />`, place);
