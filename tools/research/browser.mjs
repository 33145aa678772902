// Runs ONNX files in onnxruntime-web, as a browser would, on one thread of Node: node browser.mjs < JOB > TIMES
// JOB: {"runtime": folder with node_modules, "rounds": R, "files": [{"model": path, "input": path, "shape": [...],
// "output": path}]}, arrays as raw float32. TIMES: milliseconds of each round, a list for each file.
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const job = JSON.parse(readFileSync(0, 'utf8'));
const ort = createRequire(`${job.runtime}/`)('onnxruntime-web/wasm');
ort.env.wasm.numThreads = 1;

const floats = (path) => {
    const bytes = readFileSync(path);
    return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
};
const runs = [];
for (const { model, input, shape, output } of job.files) {
    const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(model)), { graphOptimizationLevel: 'all' });
    const feeds = { [session.inputNames[0]]: new ort.Tensor('float32', floats(input), shape) };
    const given = (await session.run(feeds))[session.outputNames[0]];
    writeFileSync(output, new Uint8Array(given.data.buffer, given.data.byteOffset, given.data.byteLength));
    runs.push({ session, feeds, times: [] });
}
for (let round = 0; round < job.rounds; round++) {
    for (const { session, feeds, times } of runs) {
        const start = performance.now();
        await session.run(feeds);
        times.push(performance.now() - start);
    }
}
console.log(JSON.stringify(runs.map((run) => run.times)));
process.exit(0);
