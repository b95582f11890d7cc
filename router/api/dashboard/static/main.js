// Takes the news and hands them to the parts of the page.
import { setUpAsk } from "./ask.js";
import { byId, duration, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { updateFigures } from "./figures.js";
import { addHappenings } from "./happenings.js";
import { drop, InstanceHistory } from "./history.js";
import { setUpKey } from "./key.js";
import { updateMacros } from "./macros.js";
import { Timeline } from "./timeline.js";

/** What the page knows of the cluster, and what time it is there. */
class Model {
  constructor() {
    this.load = [];
    this.histories = new Map();
    this.ahead = null; // the feed's clock less this page's
  }

  history(id) {
    if (!this.histories.has(id)) this.histories.set(id, new InstanceHistory());
    return this.histories.get(id);
  }

  now() {
    return performance.now() + (this.ahead ?? 0);
  }

  take(state) {
    const ahead = state.at - performance.now();
    // A message that took long must not turn the clock back.
    const near = this.ahead !== null && Math.abs(ahead - this.ahead) < 2000;
    this.ahead = near ? Math.max(ahead, this.ahead - 2) : ahead;
    if (state.fresh) {
      this.histories.clear();
      this.load = [];
    }
    this.load.push(...state.load);
    drop(this.load, state.at, (entry) => entry[0]);
    for (const news of state.instances) this.history(news.id).take(news, state.at);
  }
}

const model = new Model();
const timeline = new Timeline(model);
const feed = new Feed((state) => {
  model.take(state);
  const { id, model: name, version, uptime_s } = state.router;
  setText(byId("model"), `${name} at ${location.origin}/v1`);
  setText(byId("router"), `${id}, TidePipe ${version}, up ${duration(1000 * uptime_s)}`);
  updateFigures(state, model.load);
  updateMacros(state.macros);
  timeline.update(state);
  addHappenings(state.happenings, state.fresh, (at) => Date.now() + at - model.now());
});
setUpKey(() => feed.restart());
setUpAsk();
feed.run();
