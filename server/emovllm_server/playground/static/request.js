// From the settings to a request's body, and to what can be copied of it.
import { address, key } from "./server.js";

export const defaults = {
  model: "",
  weights: {},
  strength: 1,
  scope: "",
  target: null, // the level to hold what is read at
  worded: false, // whether the emotion's instruction goes into the system turn as well
  schedule: { form: "level", hold: 10, half_life: 30, from: 0, to: 40, points: "0:1, 50:0.3" },
  system: "",
  instruction: null, // null: the one that the emotions ask for
  temperature: 0.7,
  max_tokens: 120,
  seed: 1,
  read: true,
};

/** The emotions with a weight. */
export const mixOf = ({ weights }) => Object.fromEntries(Object.entries(weights).filter(([, weight]) => weight !== 0));

/** What asks for the same emotions in words: the instruction of the circuits' paper, which evaluations compare with. */
export function instructionOf(settings) {
  if (settings.instruction !== null) return settings.instruction;
  const wanted = Object.entries(mixOf(settings)).filter(([, weight]) => weight * settings.strength > 0);
  const names = wanted.map(([name]) => name.split("/").pop());
  return names.length ? `Always reply in ${names.join(" and ")}.` : "";
}

/** `emotion_schedule`, or undefined. Points that cannot be read go to the server as they are: it says what it takes. */
export function scheduleOf({ form, hold, half_life, from, to, points }) {
  if (form === "fade") return { hold, half_life };
  if (form === "window") return { from, ...(to === null ? {} : { to }) };
  if (form !== "points") return undefined;
  const pairs = points
    .split(",")
    .map((pair) => pair.split(":").map((part) => (part.trim() === "" ? NaN : Number(part))));
  return pairs.every((pair) => pair.length === 2 && pair.every(Number.isFinite)) ? pairs : points;
}

/** The share of the strength at a token of the reply, as the engine computes it; NaN where there is none. */
export function share(schedule, token) {
  if (schedule === undefined) return 1;
  if (Array.isArray(schedule)) {
    const after = schedule.findIndex(([at]) => at > token);
    if (after <= 0) return schedule[after === 0 ? 0 : schedule.length - 1][1];
    const [[x0, y0], [x1, y1]] = [schedule[after - 1], schedule[after]];
    return y0 + ((y1 - y0) * (token - x0)) / (x1 - x0);
  }
  if (schedule.half_life)
    return 2 ** (-Math.max(token - Math.max((schedule.hold ?? 0) - 1, 0), 0) / schedule.half_life);
  if (schedule.from !== undefined) return Number(token >= (schedule.from ?? 0) && token < (schedule.to ?? Infinity));
  return NaN;
}

/** A request's body. kind: plain, prompted or steered. said: the messages so far, the user's last. */
export function bodyOf(kind, settings, said, about) {
  const systems = [settings.system, kind === "prompted" ? instructionOf(settings) : ""]
    .map((text) => text.trim())
    .filter(Boolean);
  const body = {
    model: settings.model,
    messages: [...systems.slice(0, 1).map(() => ({ role: "system", content: systems.join("\n") })), ...said],
  };
  const mix = mixOf(settings);
  const names = Object.keys(mix);
  if (kind === "steered" && names.length) {
    body.emotion = names.length === 1 && mix[names[0]] === 1 ? names[0] : mix;
    if (settings.strength !== 1) body.emotion_strength = settings.strength;
    if (settings.scope) body.emotion_scope = settings.scope;
    const schedule = scheduleOf(settings.schedule);
    if (schedule !== undefined) body.emotion_schedule = schedule;
    if (settings.target !== null && about.reading) body.emotion_target = settings.target;
    if (settings.worded) body.emotion_prompt = true;
  } else if (about.emotions.length) {
    body.emotion = "none"; // also where the operator has a default
  }
  if (about.reading && settings.read) body.emotion_readout = "tokens";
  for (const name of ["temperature", "max_tokens", "seed"]) if (settings[name] !== null) body[name] = settings[name];
  return body;
}

/** The largest strength at which every emotion of a blend is within its cap; Infinity without any. */
export function largest(settings, about) {
  const caps = new Map(about.emotions.map((emotion) => [emotion.id, emotion.max_strength]));
  const each = Object.entries(mixOf(settings)).map(([name, weight]) => caps.get(name) / Math.abs(weight));
  return Math.min(Infinity, ...each);
}

export function curl(body) {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const lines = [`curl ${quoted(address("v1/chat/completions"))}`, `-H 'content-type: application/json'`];
  if (key()) lines.push(`-H "authorization: Bearer $EMOVLLM_API_KEY"`);
  return [...lines, `-d ${quoted(JSON.stringify(body, null, 2))}`].join(" \\\n  ");
}

export function python(body) {
  const own = Object.keys(body).filter((name) => name.startsWith("emotion"));
  const fields = Object.entries(body).filter(([name]) => !own.includes(name));
  const extra = Object.fromEntries(own.map((name) => [name, body[name]]));
  const given = [...fields, ...(own.length ? [["extra_body", extra]] : [])];
  const secret = key() ? 'os.environ["EMOVLLM_API_KEY"]' : '"none"';
  return [
    ...(key() ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(address("v1"))}, api_key=${secret})`,
    "reply = client.chat.completions.create(",
    ...given.map(([name, value]) => `    ${name}=${literal(value, "    ")},`),
    ")",
    "print(reply.choices[0].message.content)",
  ].join("\n");
}

/** A value of JSON as Python writes it. */
function literal(value, indent = "") {
  const deeper = `${indent}    `;
  if (value === null || typeof value === "boolean") return { null: "None", true: "True", false: "False" }[value];
  if (typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) {
    const parts = value.map((part) => literal(part, deeper));
    const flat = `[${parts.join(", ")}]`;
    return flat.length < 70 ? flat : `[\n${parts.map((part) => `${deeper}${part},\n`).join("")}${indent}]`;
  }
  const parts = Object.entries(value).map(([name, part]) => `${JSON.stringify(name)}: ${literal(part, deeper)}`);
  const flat = `{${parts.join(", ")}}`;
  return flat.length < 90 ? flat : `{\n${parts.map((part) => `${deeper}${part},\n`).join("")}${indent}}`;
}

/** The model's name that carries the emotions, and the strength that goes with it; null where no name says them. */
export function modelName(settings) {
  const mix = mixOf(settings);
  const names = Object.keys(mix);
  const [first] = Object.values(mix);
  if (!names.length || Object.values(mix).some((weight) => weight !== first)) return null;
  // A name means equal parts that add up to 1.
  const strength = Number((settings.strength * first * names.length).toPrecision(12));
  return { name: `${settings.model}:${names.join("+")}`, strength };
}
