// One model in onnxruntime-node or onnxruntime-web, which calls and times it by itself: a command and its answer are a
// line of JSON each in Node, and the function `answer` in a page.
//   open {module, graph, threads}  -> {load_ms, inputs, outputs}     lay {feeds: [...]} -> {}
//   run {feeds} -> {outputs}       time {runs, ms} -> {latency_ns}
const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  uint32: Uint32Array,
  int32: Int32Array,
  uint64: BigUint64Array,
  int64: BigInt64Array,
  bool: Uint8Array,
};
const inNode = globalThis.process?.versions?.node !== undefined;
let ort;
let session;
let feeds;

const COMMANDS = {
  async open({ module, graph, threads }) {
    const started = performance.now();
    ort = await import(module);
    if (ort.env?.wasm !== undefined) {
      ort.env.wasm.numThreads = threads;
      if (!inNode) ort.env.wasm.wasmPaths = new URL("./", module).href;
    }
    session = await ort.InferenceSession.create(await read(graph), {
      executionProviders: [module.includes("onnxruntime-node") ? "cpu" : "wasm"],
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      logSeverityLevel: 4,
    });
    const load_ms = performance.now() - started;
    return { load_ms, inputs: session.inputMetadata.map(spec), outputs: session.outputMetadata.map(spec) };
  },
  async lay({ feeds: given }) {
    feeds = given.map(tensors);
    return {};
  },
  async run({ feeds: given }) {
    const made = await session.run(tensors(given));
    return { outputs: Object.fromEntries(Object.entries(made).map(([name, tensor]) => [name, packed(tensor)])) };
  },
  async time({ runs, ms }) {
    const latency_ns = [];
    const deadline = performance.now() + ms;
    let end;
    do {
      const start = performance.now();
      await session.run(feeds[latency_ns.length % feeds.length]);
      end = performance.now();
      latency_ns.push(Math.round((end - start) * 1e6));
    } while (end < deadline || latency_ns.length < runs);
    return { latency_ns };
  },
};

async function read(graph) {
  if (!inNode) return new Uint8Array(await (await fetch(graph)).arrayBuffer());
  return new Uint8Array(await (await import("node:fs/promises")).readFile(graph));
}

function spec({ name, type, shape }) {
  return { name, dtype: type, shape };
}

function tensors(given) {
  const made = Object.entries(given).map(([name, { dtype, shape, data }]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    return [name, new ort.Tensor(dtype, new ARRAYS[dtype](bytes.buffer), shape)];
  });
  return Object.fromEntries(made);
}

function packed({ type, dims, data }) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return { dtype: type, shape: [...dims], data: btoa(text) };
}

async function answer(command) {
  try {
    return { ok: await COMMANDS[command.do](command) };
  } catch (error) {
    return { error: String(error?.message ?? error) };
  }
}

if (inNode) {
  const { createInterface } = await import("node:readline");
  const { Worker } = await import("node:worker_threads");
  // Whoever started us holds file 3 open. A call that hangs would not see that they are gone; this thread does.
  const lifeline = 'require("fs").readSync(3, Buffer.alloc(1)); process.kill(process.pid, "SIGKILL");';
  new Worker(lifeline, { eval: true, execArgv: [] }).unref();
  console.log = console.error; // a runtime that prints must not speak between our lines
  for await (const line of createInterface({ input: process.stdin })) {
    process.stdout.write(`${JSON.stringify(await answer(JSON.parse(line)))}\n`);
  }
  process.exit(0);
} else {
  globalThis.answer = answer;
}
