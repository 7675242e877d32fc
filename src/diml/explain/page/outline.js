/** The outline of a group of regions on its grid, and the place of its number. Geometry only, no access to the document. */

const STEPS = [[1, 0], [0, 1], [-1, 0], [0, -1]]; // right, down, left, up

/**
 * Closed rings around a set of cells, with the cells on the right of the way; cells that meet in a corner stay apart.
 * @param {number[]} regions  row-major
 * @param {number} columns
 * @returns {{at: [number, number], into: number, out: number}[][]}  corners [column, row], directions of the edges at each
 */
export function ringsOf(regions, columns) {
  const inside = new Set(regions);
  const has = (column, row) => column >= 0 && column < columns && inside.has(row * columns + column);
  const edges = new Map(); // start of an edge -> directions
  const add = (column, row, way) => edges.set(`${column},${row}`, [...(edges.get(`${column},${row}`) ?? []), way]);
  for (const region of inside) {
    const [row, column] = [Math.floor(region / columns), region % columns];
    if (!has(column, row - 1)) add(column, row, 0);
    if (!has(column + 1, row)) add(column + 1, row, 1);
    if (!has(column, row + 1)) add(column + 1, row + 1, 2);
    if (!has(column - 1, row)) add(column, row + 1, 3);
  }
  const [rings, walked] = [[], new Set()];
  for (const [start, ways] of edges) {
    for (const way of ways) {
      if (!walked.has(`${start},${way}`)) rings.push(ringFrom(start.split(",").map(Number), way, edges, walked));
    }
  }
  return rings;
}

/** Walk along edges until the first comes again, keeping the corners where the way turns. */
function ringFrom(start, first, edges, walked) {
  const steps = [];
  let [at, way] = [start, first];
  while (!walked.has(`${at},${way}`)) {
    walked.add(`${at},${way}`);
    steps.push({ at, way });
    at = [at[0] + STEPS[way][0], at[1] + STEPS[way][1]];
    const ways = edges.get(`${at}`);
    way = ways.length > 1 ? (way + 1) % 4 : ways[0]; // where two cells meet in a corner, stay at the same cell
  }
  return steps
    .map(({ at: corner, way: out }, index) => ({ at: corner, into: steps.at(index - 1).way, out }))
    .filter(({ into, out }) => into !== out);
}

/**
 * An SVG path around a group of regions, moved inwards so that the outlines of neighbours do not cover each other.
 * @param {number[]} regions
 * @param {[number, number]} layout  rows and columns
 * @param {{width: number, height: number}} size  of the image
 * @param {number} inset
 */
export function outlinePath(regions, layout, size, inset) {
  const [wide, high] = [size.width / layout[1], size.height / layout[0]];
  const most = Math.min(wide, high) / 2 - inset;
  return ringsOf(regions, layout[1])
    .map((ring) => {
      const corners = ring.map(({ at, into, out }) => {
        const inwards = [0, 1].map((axis) => STEPS[(into + 1) % 4][axis] + STEPS[(out + 1) % 4][axis]);
        return { x: at[0] * wide + inset * inwards[0], y: at[1] * high + inset * inwards[1], into: STEPS[into], out: STEPS[out] };
      });
      return rounded(corners, Math.max(0, Math.min(1.6 * inset, most)));
    })
    .join("");
}

function rounded(corners, radius) {
  const write = (value) => value.toFixed(1);
  const parts = corners.map(({ x, y, into, out }, index) => {
    const from = `${write(x - radius * into[0])} ${write(y - radius * into[1])}`;
    const to = `${write(x + radius * out[0])} ${write(y + radius * out[1])}`;
    return `${index ? "L" : "M"}${from}Q${write(x)} ${write(y)} ${to}`;
  });
  return `${parts.join("")}Z`;
}

/** Groups of regions that share an edge, largest first. @param {number[]} regions @param {number} columns */
export function piecesOf(regions, columns) {
  const left = new Set([...regions].sort((one, other) => one - other));
  const pieces = [];
  for (const first of left) {
    const piece = [first];
    left.delete(first);
    for (const region of piece) {
      const column = region % columns;
      const near = [region - columns, region + columns, ...(column ? [region - 1] : []), ...(column < columns - 1 ? [region + 1] : [])];
      for (const next of near) if (left.delete(next)) piece.push(next);
    }
    pieces.push(piece.sort((one, other) => one - other));
  }
  return pieces.sort((one, other) => other.length - one.length || one[0] - other[0]);
}

/**
 * Where the numbers of the parts go: at the corner of a piece, and so that no two cover each other.
 * @param {number[][]} parts  regions of each
 * @param {[number, number]} layout
 * @param {{width: number, height: number}} size
 * @param {number} radius  of a badge
 * @returns {{part: number, x: number, y: number}[]}  `part` is a row of `parts`; a second piece without space has none
 */
export function badgesOf(parts, layout, size, radius) {
  const placed = [];
  const pieces = parts.map((regions) => piecesOf(regions, layout[1]));
  const most = Math.max(0, ...pieces.map((one) => one.length));
  for (let rank = 0; rank < most; rank += 1) {
    pieces.forEach((one, part) => {
      if (!one[rank]) return;
      const places = placesOf(one[rank], layout, size, radius).map((place) => ({ part, ...place }));
      const gap = (place) => Math.min(Infinity, ...placed.map((other) => Math.hypot(place.x - other.x, place.y - other.y)));
      const free = places.find((place) => gap(place) > 2 * radius + 2);
      if (free) placed.push(free);
      else if (!rank) placed.push(places.reduce((best, place) => (gap(place) > gap(best) ? place : best)));
    });
  }
  return placed;
}

/** Places of a badge at the corners of the regions of a piece, those first where it lies inside the piece. */
function placesOf(piece, layout, size, radius) {
  const [wide, high] = [size.width / layout[1], size.height / layout[0]];
  const inside = new Set(piece);
  const within = (value, most) => Math.min(Math.max(value, radius + 1), most - radius - 1);
  const places = piece.map((region) => {
    const x = within((region % layout[1]) * wide + radius + 3, size.width);
    const y = within(Math.floor(region / layout[1]) * high + radius + 3, size.height);
    const corners = [-1, 1].flatMap((down) => [-1, 1].map((right) => Math.floor((y + down * radius) / high) * layout[1] + Math.floor((x + right * radius) / wide)));
    return { x, y, outside: corners.filter((corner) => !inside.has(corner)).length };
  });
  return places.sort((one, other) => one.outside - other.outside).map(({ x, y }) => ({ x, y }));
}

/** The box around a group of regions with a margin, in the units of the image. */
export function boxOf(regions, layout, size, margin = 0.25) {
  const [wide, high] = [size.width / layout[1], size.height / layout[0]];
  const columns = regions.map((region) => region % layout[1]);
  const rows = regions.map((region) => Math.floor(region / layout[1]));
  const left = Math.max(0, (Math.min(...columns) - margin) * wide);
  const top = Math.max(0, (Math.min(...rows) - margin) * high);
  const right = Math.min(size.width, (Math.max(...columns) + 1 + margin) * wide);
  const bottom = Math.min(size.height, (Math.max(...rows) + 1 + margin) * high);
  return { x: left, y: top, width: right - left, height: bottom - top };
}
