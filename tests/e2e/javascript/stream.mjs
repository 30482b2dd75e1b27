import { COUNTER, ECHO, failure, replicate, report } from "./scenario.mjs";

const byVersion = `local/counter:${COUNTER}`;

async function read(ref, input) {
  const events = [];
  for await (const event of replicate.stream(ref, { input })) events.push(event);
  return events;
}

// A count that no other caller asks for finds the prediction that `stream` does not tell.
async function statusOf(count) {
  const { results } = await replicate.predictions.list();
  return results.find((prediction) => prediction.input.count === count);
}

const count = 731;
const live = [];
let statusAtFirstPiece;
for await (const event of replicate.stream(byVersion, { input: { count, pause_s: 0.1 } })) {
  if (live.length === 0) {
    const prediction = await statusOf(count);
    statusAtFirstPiece = prediction.status;
    await replicate.predictions.cancel(prediction.id);
  }
  live.push(event);
}

report({
  text: (await read(byVersion, { count: 4 })).join(""),
  byName: await read("local/counter", { count: 2 }),
  statusAtFirstPiece,
  firstPiece: live.at(0),
  lastOfCanceled: live.at(-1),
  failure: await failure(read(byVersion, { count: 5, fail_at: 2 })),
  unsupported: await failure(read(`local/echo:${ECHO}`, {})),
});
