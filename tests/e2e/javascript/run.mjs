import { ECHO, Replicate, failure, replicate, report } from "./scenario.mjs";

const byVersion = `local/echo:${ECHO}`;
const bar = "  40%|####      | 4/10 [00:01<00:02,  2.5it/s]";

const statuses = [];
const bars = [];
const polled = await replicate.run(
  byVersion,
  { input: { text: "polled", log: bar, sleep_s: 1.0 }, wait: { mode: "poll", interval: 50 } },
  (prediction) => {
    statuses.push(prediction.status);
    bars.push(Replicate.parseProgressFromLogs(prediction)?.percentage ?? null);
  },
);

const ranOut = [];
const slow = await replicate.run(
  byVersion,
  { input: { text: "slow", sleep_s: 1.5 }, wait: { mode: "block", timeout: 1 } },
  (prediction) => ranOut.push([prediction.status, prediction.output ?? null]),
);

// The client looks at the signal between two polls and cancels the prediction itself.
const abort = new AbortController();
let aborted;
const abortedOutput = await replicate.run(
  byVersion,
  { input: { sleep_s: 50 }, wait: { mode: "poll", interval: 50 }, signal: abort.signal },
  (prediction) => {
    aborted = prediction;
    if (prediction.status === "processing") abort.abort();
  },
);

report({
  blocked: await replicate.run(byVersion, { input: { text: "blocked" } }),
  byName: await replicate.run("local/echo", { input: { text: "latest" } }),
  polled,
  statuses,
  bars,
  slow,
  ranOut,
  aborted: { status: aborted.status, output: abortedOutput },
  failure: await failure(replicate.run(byVersion, { input: { fail: "too sour" } })),
});
