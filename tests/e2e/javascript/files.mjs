import { MIRROR, replicate, report } from "./scenario.mjs";

// Runs the model that reverses a file; answers what its output holds.
async function mirror(file) {
  const output = await replicate.run(`local/mirror:${MIRROR}`, { input: { file } });
  const blob = await output.blob();
  return { text: await blob.text(), protocol: output.url().protocol, type: blob.type };
}

const uploaded = await replicate.files.create(
  new File(["remember"], "note.txt", { type: "text/plain" }),
  { subject: "memory" },
);
const listed = (await replicate.files.list()).results.map((file) => file.id);

report({
  blob: await mirror(new Blob(["from a blob"])),
  buffer: await mirror(Buffer.from("from a buffer")),
  uploaded,
  isListed: listed.includes(uploaded.id),
  got: await replicate.files.get(uploaded.id),
  byUrl: await mirror(uploaded.urls.get),
  deleted: await replicate.files.delete(uploaded.id),
  listedAfter: (await replicate.files.list()).results.map((file) => file.id),
});
