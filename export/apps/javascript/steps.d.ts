/** @param {Step} step @returns {step is SpatialStep} */
export function isSpatial(step: Step): step is SpatialStep;
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
export type SpatialStep = Decode | {
    op: "to_rgb";
} | {
    op: "to_grey";
} | Resize | {
    op: "center_crop";
    size: [number, number];
};
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
