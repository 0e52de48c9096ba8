// Ask llama.cpp, as node-llama-cpp ships it: node ask_llama_cpp.mjs FOLDER_WITH_NODE_MODULES JOBS.json
// A line of JSON a job: ids of the prompt, as llama.cpp tokenises it, and those of the greedy answer.
import fs from "node:fs";
import {createRequire} from "node:module";
import path from "node:path";
import {pathToFileURL} from "node:url";

const place = createRequire(path.join(process.argv[2], "package.json")).resolve("node-llama-cpp");
const {getLlama} = await import(pathToFileURL(place));
// Its cache is in fp16 by default, which is enough to tip the routers of random experts.
const exact = {experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32", flashAttention: false};
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: "error", maxThreads: 1});
for (const {model: modelPath, text, count} of JSON.parse(fs.readFileSync(process.argv[3], "utf8"))) {
  try {
    const model = await llama.loadModel({modelPath, useMmap: false});
    const first = model.tokens.shouldPrependBosToken ? [model.tokens.bos] : [];
    const prompt = [...first, ...model.tokenize(text, true)];
    const context = await model.createContext({contextSize: 256, ...exact});
    const answer = [];
    for await (const token of context.getSequence().evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
      answer.push(token);
      if (answer.length === count) break;
    }
    console.log(JSON.stringify({prompt, answer}));
    await context.dispose();
    await model.dispose();
  } catch (error) {
    console.log(JSON.stringify({error: String(error)}));
  }
}
process.exit(0);
