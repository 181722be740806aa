/** @param {Step} step @returns {step is SpatialStep} */
export function isSpatial(step: Step): step is SpatialStep;
/** The step that makes ids of texts; undefined for a model of something else. @param {Step[]} steps @returns {Tokenize | undefined} */
export function tokenizeStep(steps: Step[]): Tokenize | undefined;
/**
 * What is wrong with the steps of a preprocessing; null where they can be done.
 * @param {Record<string, any>[]} steps
 * @param {string} where
 */
export function checkSteps(steps: Record<string, any>[], where: string): string | null;
/**
 * What is wrong with the steps of a postprocessing; null where they can be done.
 * @param {Record<string, any>[]} steps
 * @param {string} where
 */
export function checkPostSteps(steps: Record<string, any>[], where: string): string | null;
export type Decode = {
    op: "decode";
    exif?: boolean;
    alpha?: "black" | "white";
};
export type Resize = {
    op: "resize";
    size: number | [number, number];
    filter?: "nearest" | "bilinear" | "bicubic";
    antialias?: boolean;
};
export type Tokenize = {
    op: "tokenize";
    file: string;
    max_length?: number;
    vocabulary?: number | null;
};
export type ImageStep = Decode | {
    op: "to_rgb";
} | {
    op: "to_grey";
} | Resize | {
    op: "center_crop";
    size: [number, number];
};
export type SpatialStep = ImageStep | Tokenize;
export type ArithmeticStep = {
    op: "scale";
    factor?: number;
} | {
    op: "normalize";
    mean?: number[];
    std?: number[];
} | {
    op: "layout";
    to?: "CHW" | "HWC" | "flat";
} | {
    op: "trim";
    pad: number;
};
export type Step = SpatialStep | ArithmeticStep;
export type PostStep = {
    op: "softmax";
    temperature?: number;
} | {
    op: "sigmoid";
} | {
    op: "denormalize";
    mean?: number[];
    std?: number[];
} | {
    op: "threshold";
    value?: number;
} | {
    op: "top_k";
    k?: number;
};
export type Rule = [(value: any) => boolean, string];
