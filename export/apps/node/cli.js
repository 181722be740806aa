#!/usr/bin/env node
// What a student says about images or texts, or whether it is intact. Exit codes: 0 done, 1 the self-test failed, 2 usage,
// 3 input refused, 4 something is missing here.
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { OWN_BUNDLE, StudentError, openStudent } from "./index.js";
import { readNpy } from "./student/archive.js";
import { told } from "./student/errors.js";
import { shown } from "./student/postprocess.js";

const USAGE = "usage: node cli.js IMAGE-OR-TEXT... [--top-k N] [--bundle PATH] [--variant NAME] [--threads N] | --self-test";

/** @param {string[]} args @returns {Promise<number>} the exit code */
async function main(args) {
  const { values, positionals } = parse(args);
  if (positionals.length === 0 && !values["self-test"]) throw new StudentError(USAGE, 2);
  const student = await openStudent(values.bundle, { variant: values.variant, threads: Number(values.threads) });
  try {
    if (values["self-test"]) {
      const { ok, variant, samples, problems } = await student.selfTest();
      for (const problem of problems) console.error(`self-test FAILED: ${variant}: ${problem}`);
      if (!ok) return 1;
      console.log(`self-test passed: ${variant} gives its golden outputs here (${samples} samples)`);
    }
    const readsTexts = student.maxTokens !== null;
    for (const name of readsTexts ? texts(positionals) : positionals) {
      const answer = await student.predict(readsTexts ? name : await load(name), { topK: Number(values["top-k"]) });
      const top = answer.top.map(({ label, score }) => `${label} ${score.toPrecision(4)}`).join("  ");
      const { task, outputs } = student.manifest;
      const said = task === "embedding" ? shown(answer.outputs[outputs[0]?.name ?? ""]?.data) : top;
      console.log(`${readsTexts ? onOneLine(name) : name}: ${said}`);
      if (answer.truncated) console.error("note: this text is longer than the model reads: its end was not looked at");
    }
    return 0;
  } finally {
    await student.close();
  }
}

/** @param {string[]} args */
function parse(args) {
  try {
    return parseArgs({
      args,
      allowPositionals: true,
      options: {
        "self-test": { type: "boolean", default: false },
        "top-k": { type: "string", default: "1" },
        bundle: { type: "string", default: OWN_BUNDLE },
        threads: { type: "string", default: "1" },
        variant: { type: "string" },
      },
    });
  } catch (error) {
    throw new StudentError(`${told(error)}\n${USAGE}`, 2);
  }
}

/** The texts themselves; for - each line of the standard input. @param {string[]} given @returns {string[]} */
function texts(given) {
  return given.flatMap((one) => (one === "-" ? lines(new Uint8Array(readFileSync(0))) : [one]));
}

/** @param {Uint8Array} bytes */
function lines(bytes) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    return text.replace(/\r?\n$/, "").split(/\r?\n/);
  } catch {
    throw new StudentError("the standard input is not valid UTF-8; convert it first");
  }
}

/** A text on one line, and not all of a long one. @param {string} text */
function onOneLine(text) {
  const line = text.replace(/\s+/g, " ");
  return line.length <= 60 ? line : `${line.slice(0, 57)}...`;
}

/** @param {string} name of an image, or of a .npy array */
async function load(name) {
  let bytes;
  try {
    bytes = await readFile(name);
  } catch (error) {
    throw new StudentError(`cannot read ${name} (${told(error)}); check the path`);
  }
  if (!name.endsWith(".npy")) return new Uint8Array(bytes);
  try {
    return readNpy(new Uint8Array(bytes));
  } catch (error) {
    throw new StudentError(`${name} is no array of numbers (${told(error)}); save it with numpy.save`);
  }
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof StudentError)) throw error;
  console.error(`error: ${error.message}`);
  process.exitCode = error.exitCode;
}
