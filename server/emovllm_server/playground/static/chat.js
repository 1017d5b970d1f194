// Conversations: each column has its own, with its own replies to the same messages.
import { bodyOf } from "./request.js";
import { chunks } from "./server.js";

export const KINDS = { plain: "Plain", prompted: "Prompted", steered: "Steered" };

export class Column {
  constructor(kind) {
    this.kind = kind;
    this.turns = [];
  }

  /** The messages so far, and one more. A turn without a reply is left out: the model would answer to it twice. */
  said(user) {
    const turns = this.turns.filter((turn) => turn.text);
    return [
      ...turns.flatMap((turn) => [
        { role: "user", content: turn.user },
        { role: "assistant", content: turn.text },
      ]),
      ...(user === null ? [] : [{ role: "user", content: user }]),
    ];
  }

  /** Has the server answer, and tells whenever there is more. Throws nothing but a refusal for want of a key. */
  async answer(user, settings, about, signal, changed) {
    const body = bodyOf(this.kind, settings, this.said(user), about);
    const turn = new Turn(user, this.kind, about.reading?.labels ?? []);
    this.turns.push(turn);
    changed();
    try {
      for await (const chunk of chunks(body, signal)) {
        turn.add(chunk);
        changed();
      }
      turn.state = "done";
    } catch (error) {
      turn.state = error.name === "AbortError" ? "stopped" : "failed";
      if (turn.state === "failed") turn.error = error.message;
      if (error.status === 401) {
        this.turns.pop();
        throw error;
      }
    } finally {
      turn.seconds = (performance.now() - turn.began) / 1000;
      turn.version++;
      changed();
    }
  }
}

/** A user's message and the reply to it. */
class Turn {
  constructor(user, kind, labels) {
    Object.assign(this, { user, kind, labels, state: "writing", error: "", text: "", pieces: [], version: 0 });
    this.readings = []; // of each token, the probabilities of all labels
    this.applied = this.read = null;
    this.acted = []; // guards
    this.began = performance.now();
    this._waiting = []; // readings whose text has not come: a character may take several tokens
  }

  add(chunk) {
    this.version++;
    this.applied ??= chunk.emotion ?? null;
    for (const { delta, emotion_readout: read, emotion_guard: acted } of chunk.choices) {
      if (acted) this.acted = acted;
      const tokens = read?.tokens ?? [];
      this._waiting.push(...tokens);
      this.readings.push(...tokens);
      if (read?.reply) this.read = read;
      const thought = delta?.reasoning ?? delta?.reasoning_content ?? "";
      const text = thought || (delta?.content ?? "");
      if (!text) continue;
      const at = this.readings.length - this._waiting.length;
      this.pieces.push({ text, thought: Boolean(thought), at, reading: mean(this._waiting) });
      this._waiting = [];
      if (!thought) this.text += text;
    }
  }
}

/** Of readings, label by label; null of none. */
function mean(readings) {
  if (!readings.length) return null;
  return readings[0].map((_, label) => readings.reduce((sum, reading) => sum + reading[label], 0) / readings.length);
}
