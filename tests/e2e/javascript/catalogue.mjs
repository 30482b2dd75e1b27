import { ECHO, replicate, report } from "./scenario.mjs";

const ids = ({ results }) => results.map((item) => item.id ?? `${item.owner}/${item.name}`);

report({
  account: await replicate.accounts.current(),
  hardware: await replicate.hardware.list(),
  created: await replicate.models.create("local", "made-by-node", {
    visibility: "private",
    hardware: "cpu",
  }),
  model: await replicate.models.get("local", "echo"),
  models: ids(await replicate.models.list()),
  version: await replicate.models.versions.get("local", "echo", ECHO),
  versions: ids(await replicate.models.versions.list("local", "echo")),
});
