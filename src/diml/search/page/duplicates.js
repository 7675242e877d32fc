"use strict";
// Groups of copies with a choice for each image. All texts are set as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const boxes = data.groups.map(() => []);

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function size(bytes) {
  if (bytes >= 1e6) return `${(bytes / 1e6).toFixed(1)} MB`;
  return `${Math.max(bytes ? 1 : 0, Math.round(bytes / 1e3))} kB`;
}

function count(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function relation(image) {
  const named = { kept: "suggested to keep", exact: "exact copy", copy: "copy", mirrored: "mirrored copy",
    cropped: "cropped copy" };
  const sure = image.relation === "kept" || image.relation === "exact" ? "" : `, agreement ${image.agreement.toFixed(3)}`;
  return named[image.relation] + sure;
}

function card(image, group) {
  const made = element("label", "card");
  const source = data.thumbnails[image.thumbnail];
  if (source === undefined) {
    made.append(element("span", "none", "cannot be read"));
  } else {
    const shown = element("img");
    shown.src = source;
    shown.alt = image.short;
    shown.loading = "lazy";
    made.append(shown);
  }
  const choice = element("span", "choice");
  const box = element("input");
  box.type = "checkbox";
  box.setAttribute("aria-label", `keep ${image.short}`);
  box.addEventListener("change", () => show());
  const word = element("span");
  choice.append(box, word);
  const pixels = image.width ? `${image.width} × ${image.height}, ${size(image.bytes)}` : "no file";
  const path = element("span", "path", image.short);
  path.title = image.path;
  made.append(choice, path, element("span", "facts", `${pixels}; ${relation(image)}`));
  if (image.note) made.append(element("span", "facts", image.note));
  boxes[group].push({ box, word, made, image });
  return made;
}

function section(group, number) {
  const made = element("section");
  const exact = group.filter((image) => image.relation === "exact").length;
  const near = group.length - 1 - exact;
  const parts = [];
  if (exact) parts.push(count(exact, "exact copy", "exact copies"));
  if (near) parts.push(count(near, "near copy", "near copies"));
  const head = element("h2", "", `Group ${number + 1}: ${parts.join(", ")}`);
  head.id = `group-${number + 1}`;
  made.setAttribute("aria-labelledby", head.id);
  const images = element("div", "images");
  for (const image of group) images.append(card(image, number));
  const warning = element("p", "warning", "No image of this group is kept.");
  warning.hidden = true;
  made.append(head, images, warning);
  return made;
}

function show() {
  let removed = 0, bytes = 0, without = 0, total = 0;
  boxes.forEach((group, number) => {
    const kept = group.filter(({ box }) => box.checked).length;
    for (const { box, word, made, image } of group) {
      made.classList.toggle("remove", !box.checked);
      word.textContent = box.checked ? "Keep" : "Remove";
      if (!box.checked) { removed += 1; bytes += image.bytes; }
    }
    total += group.length;
    without += kept ? 0 : 1;
    document.querySelectorAll("section")[number].querySelector(".warning").hidden = kept > 0;
  });
  const warned = without ? `; ${count(without, "group keeps", "groups keep")} no image` : "";
  document.getElementById("state").textContent =
    `${removed.toLocaleString("en")} of ${count(total, "image", "images")} to remove, ${size(bytes)}${warned}`;
}

function choose(keeps) {
  for (const group of boxes) for (const { box, image } of group) box.checked = keeps(image);
  show();
}

function cell(value) {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function table() {
  const lines = [data.columns];
  boxes.forEach((group, number) => {
    const first = group.find(({ box }) => box.checked);
    for (const { box, image } of group) {
      lines.push([number + 1, box.checked ? "keep" : "remove", image.path, image.relation, image.agreement.toFixed(4),
        image.width, image.height, image.bytes, image.id, first ? first.image.path : ""]);
    }
  });
  return lines.map((line) => line.map(cell).join(",") + "\n").join("");
}

function save() {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv;charset=utf-8" }));
  link.download = "duplicates.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const groups = document.getElementById("groups");
groups.replaceChildren(...data.groups.map(section));
if (!data.groups.length) groups.append(element("p", "", "No copies were found."));
document.getElementById("summary").textContent = data.summary;
for (const line of data.notes) document.getElementById("sure").append(element("p", "", line));
document.getElementById("save").addEventListener("click", save);
document.getElementById("suggested").addEventListener("click", () => choose((image) => image.relation === "kept"));
document.getElementById("all").addEventListener("click", () => choose(() => true));
choose((image) => image.relation === "kept");
