import { ECHO, Replicate, failure, replicate, report } from "./scenario.mjs";

const stranger = new Replicate({ auth: "rp_wrong", baseUrl: process.env.BASE_URL });
const create = (body) => failure(replicate.predictions.create(body));

report({
  unauthenticated: await failure(stranger.accounts.current()),
  noPrediction: await failure(replicate.predictions.get("nothing")),
  noModel: await failure(replicate.models.get("local", "nothing")),
  wrongType: await create({ version: ECHO, input: { text: 5 } }),
  wrongName: await create({ version: ECHO, input: { txet: "a" } }),
  noVersion: await create({ version: "0".repeat(64), input: {} }),
  modelWithoutVersion: await create({ model: "local/nothing", input: {} }),
  training: await failure(
    replicate.trainings.create("local", "echo", ECHO, { destination: "local/echo", input: {} }),
  ),
  trainings: await failure(replicate.trainings.list()),
});
