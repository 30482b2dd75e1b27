import { ECHO, replicate, report } from "./scenario.mjs";

const create = (input, options = {}) =>
  replicate.predictions.create({ version: ECHO, input, ...options });

const waited = await create({ text: "waited" }, { wait: true });
const created = await create({ text: "created" });
const got = await replicate.wait(created, { interval: 50 });

const running = await create({ sleep_s: 50 });
const canceled = await replicate.predictions.cancel(running.id);

const made = [];
for (let number = 0; number < 5; number += 1) {
  made.push((await create({ text: `page ${number}` }, { wait: true })).id);
}
const firstPage = () =>
  replicate.request("/predictions?page_size=2", { method: "GET" }).then((answer) => answer.json());
const pages = [];
for await (const page of replicate.paginate(firstPage)) {
  pages.push(page.map((prediction) => prediction.id));
  if (pages.length === 4) break;
}

report({
  waited,
  created,
  got,
  canceled,
  canceledLater: await replicate.predictions.get(running.id),
  made,
  pages,
  listed: (await replicate.predictions.list()).results.map((prediction) => prediction.id),
});
