/**
 * The data of an explanation, and how its numbers are written (as in `formatting.py`). No access to the document.
 *
 * Legend: Rq, Rg regions of query and gallery image, row-major over their grids.
 *
 * @typedef {[number, number] | null} Grid  rows and columns, or null where the regions form no known grid
 *
 * @typedef {Object} Pair  One pair as of `describe_match` of the Python package; all numbers are fractions.
 * @property {{query: string, gallery: string}} names
 * @property {number} score  pooled + structural_weight * structural
 * @property {number} pooled  cosine of the pooled vectors
 * @property {number} structural  sum over all pairs of regions of plan * cosine
 * @property {number | "inf"} [structural_weight]  1 if missing; "inf" counts the structural score alone
 * @property {string} [note]  what must be said of a plan that is not the one that scored
 * @property {{converged: boolean, marginal_error: number, iterations: number}} convergence
 * @property {Grid} grid_q
 * @property {Grid} grid_g
 * @property {number[]} weight_q  (Rq) share of the mass that each region sends
 * @property {number[]} weight_g  (Rg) share of the mass that each region receives
 * @property {number[]} total_q  (Rq) total contribution of each region
 * @property {number[]} total_g  (Rg)
 * @property {number[][]} plan  (Rq, Rg) transported mass
 * @property {number[][]} cosine  (Rq, Rg)
 * @property {{query: number, gallery: number}} images  rows of `Explanation.images`
 *
 * @property {HitFacts} [hit]  its ranks among the hits of a query
 *
 * @typedef {Object} HitFacts
 * @property {number | null} rank  from 1, after re-ranking; null where it is unknown
 * @property {number | null} pooled_rank  from 1, by the pooled cosine alone; null where it is unknown
 * @property {number[]} lift  (Rq) contribution of each query region, minus its mean over the hits
 * @property {boolean | null} correct  whether it has the query's class; null where this is unknown
 * @property {string} note  a few words more, such as its class
 *
 * @typedef {Object} Image
 * @property {string} src  address or data URL of the image as the model saw it
 * @property {string} name
 * @property {number} width  pixels
 * @property {number} height
 *
 * @typedef {Object} Explanation  What the viewer displays.
 * @property {Image[]} images
 * @property {Pair[]} pairs  at least one; all of one query
 * @property {Object<string, string | number | boolean | null>} [settings]  settings of model and matcher
 *
 * @typedef {"q" | "g"} SideKey  query or gallery
 * @typedef {{side: SideKey, region: number}} Region
 * @typedef {{q: number, g: number, mass: number, cosine: number, contribution: number, rank: number}} Flow
 */

/** Distinguishable by colour-blind readers (Okabe and Ito 2008); as in the figures. */
export const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000"];

/** @param {number} rank counted from 0 */
export function colourOf(rank) {
  return PALETTE[rank % PALETTE.length];
}

/** Black or white, whichever is more legible on a colour `#rrggbb`. @param {string} colour */
export function inkOn(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => (parseInt(colour.slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.2 ? "#000000" : "#ffffff";
}

/** The name of a hit. @param {HitFacts} hit */
export function hitName(hit) {
  return hit.rank === null ? `former hit ${hit.pooled_rank}` : `hit ${hit.rank}`;
}

/** @param {string} words */
export function capital(words) {
  return words[0].toUpperCase() + words.slice(1);
}

/** Column by letter, row by number: `C2`; `#6` without a grid. @param {number} region @param {Grid} grid */
export function cellName(region, grid) {
  if (!grid) return `#${region}`;
  let letters = "";
  for (let column = (region % grid[1]) + 1; column > 0; column = Math.floor((column - 1) / 26)) {
    letters = String.fromCharCode(65 + ((column - 1) % 26)) + letters;
  }
  return `${letters}${Math.floor(region / grid[1]) + 1}`;
}

/** Rows and columns as drawn: the grid, or the squarest layout. @param {Grid} grid @param {number} count */
export function layoutOf(grid, count) {
  if (grid) return grid;
  const columns = Math.ceil(Math.sqrt(count));
  return [Math.ceil(count / columns), columns];
}

/** A number with a true minus sign, and none before zero. @param {number} value @param {number} digits */
export function signed(value, digits = 3) {
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212");
}

/** The weight of the structural score. @param {Pair} pair */
export function structuralWeight(pair) {
  return pair.structural_weight === "inf" ? Infinity : (pair.structural_weight ?? 1);
}

/** `structural`, with its weight where that is not 1: `4 × structural`. @param {Pair} pair */
export function structuralName(pair) {
  const weight = structuralWeight(pair);
  return weight === 1 || weight === Infinity ? "structural" : `${weight} \u00d7 structural`;
}

/**
 * The terms that sum to the score; structural only where its weight is infinite.
 * @param {Pair} pair
 * @returns {{name: "pooled" | "structural", text: string, value: number}[]}
 */
export function scoreTerms(pair) {
  const weight = structuralWeight(pair);
  const structural = { name: "structural", text: `${structuralName(pair)} ${signed(pair.structural)}`, value: pair.structural };
  if (weight === Infinity) return [structural];
  return [{ name: "pooled", text: `pooled ${signed(pair.pooled)}`, value: pair.pooled }, { ...structural, value: weight * pair.structural }];
}

/** A fraction in percent, with one digit after the point below ten. @param {number} fraction */
export function percent(fraction) {
  return `${(100 * fraction).toFixed(Math.abs(fraction) >= 0.0995 ? 0 : 1)}\u202f%`;
}

/** Digits after the point that show two significant digits of the largest value, 3 to 6. @param {number} largest */
export function decimals(largest) {
  return largest > 0 ? Math.min(6, Math.max(3, 1 - Math.floor(Math.log10(largest)))) : 3;
}

/** The last folder and the name of a path, which tell one image from another. @param {string} path @param {number} parts */
export function shortName(path, parts = 2) {
  return path.split(/[\\/]/).slice(-parts).join("/");
}

/** All entries of the ledger, largest contribution first, ties in row-major order. @param {Pair} pair @returns {Flow[]} */
export function flowsOf(pair) {
  const flows = pair.plan.flatMap((row, q) =>
    row.map((mass, g) => {
      const cosine = pair.cosine[q][g];
      return { q, g, mass, cosine, contribution: mass * cosine, rank: 0 };
    }),
  );
  flows.sort((one, other) => other.contribution - one.contribution);
  flows.forEach((flow, rank) => (flow.rank = rank));
  return flows;
}

/** The row or column of a region. @param {number[][]} matrix @param {Region} at */
export function lineOf(matrix, at) {
  return at.side === "q" ? matrix[at.region] : matrix.map((row) => row[at.region]);
}

/** The largest of many numbers, at least `floor`. @param {number[]} values @param {number} floor */
export function largestOf(values, floor = 0) {
  return values.reduce((most, value) => Math.max(most, value), floor);
}

const HEAT = [
  [0, 10, 13, 64, 0.68],
  [0.35, 97, 26, 122, 0.52],
  [0.7, 230, 92, 64, 0.4],
  [1, 255, 217, 64, 0.34],
];

/** Regions of low weight are shaded dark, regions of high weight tinted warm; the photo stays visible. @param {number} share 0 to 1 */
export function heat(share) {
  const at = Math.min(1, Math.max(0, share));
  const upper = Math.max(1, HEAT.findIndex(([stop]) => stop >= at));
  const [low, high] = [HEAT[upper - 1], HEAT[upper]];
  const part = (at - low[0]) / (high[0] - low[0]);
  const [red, green, blue, alpha] = [1, 2, 3, 4].map((n) => low[n] + part * (high[n] - low[n]));
  return `rgba(${red.toFixed(0)}, ${green.toFixed(0)}, ${blue.toFixed(0)}, ${alpha.toFixed(3)})`;
}

/** A dark veil, transparent where the mass goes. @param {number} share 0 to 1, of the largest */
export function veil(share) {
  return `rgba(8, 12, 40, ${(0.82 * (1 - Math.min(1, Math.max(0, share)) ** 0.6)).toFixed(3)})`;
}
