import { MIRROR, replicate, report } from "./scenario.mjs";

const ref = `local/mirror:${MIRROR}`;
const output = await replicate.run(ref, { input: { file: Buffer.from("over tls") } });
const url = output.url();
const blob = await output.blob();
// A browser brings no token either.
const answer = await fetch(url);

report({
  name: output.constructor.name,
  protocol: url.protocol,
  text: await blob.text(),
  type: blob.type,
  plain: await answer.text(),
});
