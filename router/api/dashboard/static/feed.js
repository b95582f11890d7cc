// The cluster's news, and what to say while there are none.
import { byId, setText } from "./dom.js";
import { askForKey } from "./key.js";
import { events, Refusal } from "./sse.js";

const SILENCE_MS = 6000;
const LONGEST_WAIT_S = 15;

/** Calls `take(state)` for each message, for ever; connects again when the connection is lost. */
export class Feed {
  constructor(take) {
    this.take = take;
    this.attempt = 0;
    this.abort = null;
    this.wake = () => {};
  }

  /** Connect anew at once, with another key perhaps. */
  restart() {
    this.attempt = 0;
    this.abort?.abort();
    this.wake();
  }

  async run() {
    for (;;) {
      try {
        await this.listen();
        this.show("connecting", "connecting", "");
      } catch (error) {
        if (error instanceof Refusal && (error.status === 401 || error.status === 403)) {
          this.show("refused", "key needed", error.message);
          askForKey();
          await new Promise((resolve) => { this.wake = resolve; });
          continue;
        }
        await this.pause(error);
      }
    }
  }

  async listen() {
    this.abort = new AbortController();
    const giveUp = () => this.abort.abort();
    let timer = setTimeout(giveUp, SILENCE_MS);
    try {
      for await (const data of events("../admin/events", { signal: this.abort.signal })) {
        clearTimeout(timer);
        timer = setTimeout(giveUp, SILENCE_MS);
        this.attempt = 0;
        this.show("live", "live", "");
        this.take(JSON.parse(data));
      }
    } finally {
      clearTimeout(timer);
    }
  }

  async pause(error) {
    this.attempt += 1;
    const until = Date.now() + 1000 * Math.min(LONGEST_WAIT_S, 2 ** (this.attempt - 1));
    let waiting = true;
    this.wake = () => { waiting = false; };
    const why = error instanceof Refusal ? error.message : "The router does not answer.";
    while (waiting && Date.now() < until) {
      const seconds = Math.ceil((until - Date.now()) / 1000);
      this.show("lost", "not connected", `${why} What you see is old. Trying again in ${seconds} s.`);
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
    this.show("connecting", "connecting", "");
  }

  show(state, word, notice) {
    const pill = byId("link");
    pill.dataset.state = state;
    setText(pill, word);
    byId("notice").hidden = !notice;
    setText(byId("notice"), notice);
  }
}
