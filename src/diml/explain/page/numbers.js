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
 * @property {string} plan_shown  "exact", "entropic, epsilon 0.05", "MaxSim" or "one-sided MaxSim"
 * @property {string} note  where the numbers sum to another score than the one that ranks; else empty
 * @property {{converged: boolean, marginal_error: number, iterations: number}} convergence
 * @property {Grid} grid_q
 * @property {Grid} grid_g
 * @property {number[]} weight_q  (Rq) share of the mass that each region sends
 * @property {number[]} weight_g  (Rg) share of the mass that each region receives
 * @property {number[]} total_q  (Rq) total contribution of each region
 * @property {number[]} total_g  (Rg)
 * @property {number[][]} plan  (Rq, Rg) transported mass
 * @property {number[][]} cosine  (Rq, Rg)
 * @property {{total_q: number[], total_g: number[], pairs?: number[][]} | null} [pooled_parts]  the pooled cosine as a sum
 *   over the regions of either side, on coarse grids over their pairs (Rq, Rg), too; null where it is not divided
 * @property {{total_q: number[], total_g: number[]} | null} [whole]  likewise the whole score
 * @property {{query: number[], gallery: number[]} | null} [unmatched]  mass of each region that is not transported
 * @property {{query: number[], gallery: number[]} | null} [potentials]  dual prices of an exact plan
 * @property {Summary} summary  what the view for everybody shows
 * @property {{query: number, gallery: number}} images  rows of `Explanation.images`
 *
 * @property {HitFacts} [hit]  its ranks among the hits of a query
 *
 * @typedef {Object} Summary  As of `Summary.to_dict` of the Python package; shares are fractions of the score.
 * @property {string} headline
 * @property {string} sentence
 * @property {number} score
 * @property {number | null} ranked_by  the score by which pairs are ranked, where it differs
 * @property {string} plan
 * @property {boolean} whole  whether the parts divide the whole score
 * @property {string} undivided  if not, why
 * @property {Part[]} parts  largest first
 * @property {{value: number, share: number | null}} between  pairs of regions of different parts
 * @property {boolean} overall  whether `between` is mainly the overall look: every region with every other
 * @property {{value: number, share: number | null} | null} pooled  where the pooled cosine is not divided
 * @property {{query: {mass: number, regions: number[]}, gallery: {mass: number, regions: number[]}} | null} unmatched
 * @property {{object: number, mixed: number, background: number} | null} background
 * @property {number | null} probability
 * @property {{score: number, false_accept_rate: number, above: boolean} | null} threshold
 * @property {Scale} scale
 * @property {string[]} warnings
 * @property {string[]} hints
 *
 * @typedef {Object} Part  A group of regions of both images that match.
 * @property {number} part  from 1
 * @property {number} value
 * @property {number | null} share
 * @property {number} mass
 * @property {number} cosine
 * @property {number[]} regions_q
 * @property {number[]} regions_g
 * @property {boolean} connected_q
 * @property {boolean} connected_g
 * @property {string} place_q  in words, such as "centre"
 * @property {string} place_g
 *
 * @typedef {Object} Scale  Common to all pairs of a model.
 * @property {number} low
 * @property {number} high
 * @property {{value: number, kind: "different" | "same" | "itself", label: string}[]} marks
 * @property {{kind: "different" | "same" | "itself", low: number, high: number}[]} bands
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

/** The colour of a part; `PALETTE` begins with the colours of parts in figures. @param {number} part from 1 */
export function partColour(part) {
  return PALETTE[(part - 1) % 6];
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

/** The score that a hit is ranked by. @param {Pair} pair */
export function scoreOfHit(pair) {
  return pair.summary.ranked_by ?? pair.score;
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

/** What each region contributes to the whole score, or null where the pooled cosine is not divided. @param {Pair} pair @param {SideKey} side */
export function wholeTotals(pair, side) {
  const name = `total_${side}`;
  return pair.whole?.[name] ?? (structuralWeight(pair) === Infinity ? pair[name] : null);
}

/** How much more similar each pair of regions would have to be before mass flowed between them: 1 - cosine - potentials. @param {Pair} pair */
export function reducedCosts(pair) {
  const { query, gallery } = pair.potentials;
  return pair.cosine.map((row, q) => row.map((cosine, g) => Math.max(0, 1 - cosine - query[q] - gallery[g])));
}

/** A share of the score in words, or a dash where the score is not positive. @param {number | null} share */
export function shareText(share) {
  return share === null ? "\u2013" : percent(share).replace("-", "\u2212");
}

/** A fraction in percent, with one digit after the point below ten. @param {number} fraction */
export function percent(fraction) {
  return `${(100 * fraction).toFixed(Math.abs(fraction) >= 0.0995 ? 0 : 1)}\u202f%`;
}

/** A small rate in percent, without zeros at its end: `0.1 %`, `1 %`. @param {number} rate */
export function rateText(rate) {
  return `${Number((100 * rate).toPrecision(2))}\u202f%`;
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

/**
 * A tint on a scale that is the same for every image: none at 1/R, dark blue towards 0, gold towards 2/R and above.
 * @param {number} times  a share of R regions, as a multiple of 1/R
 */
export function tintOf(times) {
  const off = Math.min(1, Math.max(-1, times - 1));
  return off < 0 ? `rgba(10, 24, 84, ${(-0.72 * off).toFixed(3)})` : `rgba(255, 186, 8, ${(0.72 * off).toFixed(3)})`;
}

/** A dark veil, transparent where the mass goes. @param {number} share 0 to 1, of the largest */
export function veil(share) {
  return `rgba(8, 12, 40, ${(0.82 * (1 - Math.min(1, Math.max(0, share)) ** 0.6)).toFixed(3)})`;
}
