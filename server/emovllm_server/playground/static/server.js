// What is asked of the server, with the key that it may demand. The key is kept until the tab is closed.
const STORED = "emovllm-key";
// The page is at PREFIX/playground, and the API at PREFIX/v1, whatever a proxy made of the prefix.
const root = new URL(".", document.baseURI);

export const address = (path) => new URL(path, root).href.replace(/\/$/, "");
export const key = () => sessionStorage.getItem(STORED) ?? "";
export const keep = (text) => (text ? sessionStorage.setItem(STORED, text) : sessionStorage.removeItem(STORED));

/** The server's no, in its own words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { ...(key() && { authorization: `Bearer ${key()}` }), ...options.headers };
  let response;
  try {
    response = await fetch(address(path), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server cannot be reached: is it still running?");
  }
  if (response.ok) return response;
  const text = await response.text();
  throw new Refused(response.status, told(text) || `The server answered with status ${response.status}.`);
}

function told(text) {
  try {
    const { error, detail, message } = JSON.parse(text);
    const said = error?.message ?? error ?? message ?? detail ?? "";
    return typeof said === "string" ? said : JSON.stringify(said);
  } catch {
    return text.slice(0, 300);
  }
}

/** What the server has: its models, emotions with their caps, circuits, what it reads, guards, and can tell apart. */
export async function about() {
  const [models, emotions] = await Promise.all(
    ["v1/models", "v1/emotions"].map(async (path) => (await ask(path)).json()),
  );
  // Names that carry an emotion are listed too: the sliders say that better.
  const carries = ({ id, parent }) => parent && emotions.data.some((emotion) => id === `${parent}:${emotion.id}`);
  return {
    models: models.data.filter((model) => !carries(model)).map((model) => model.id),
    emotions: emotions.data,
    circuits: emotions.circuits,
    reading: emotions.reading,
    phases: emotions.phases ?? [],
    guards: emotions.guards ?? [],
  };
}

/** The chunks of a streamed reply. Throws Refused, also where the stream ends before the reply does. */
export async function* chunks(body, signal) {
  const options = { method: "POST", headers: { "content-type": "application/json" }, signal };
  const response = await ask("v1/chat/completions", { ...options, body: JSON.stringify({ ...body, stream: true }) });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refused(0, "The connection ended before the reply did.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(chunk.error.code ?? 0, told(data));
      yield chunk;
    }
  }
}
