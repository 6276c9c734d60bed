// The models of the server: what they are, and their gates as a picture and as a table.

import { create, draw, percent } from "./elements.js";

// The statistics of snzoo.gates.STATS; style.css has their colors.
const STATS = { IN: "instance norm", LN: "layer norm", BN: "batch norm" };
const PANELS = { mean: "mean", var: "variance" };
const HEIGHT = 100;

export function describeModels(models) {
  const switchable = models.filter((model) => model.gates);
  return [
    ...(switchable.length ? [explanation(switchable)] : []),
    create("div", { class: "columns" }, ...models.map(describeModel)),
  ];
}

function explanation(models) {
  const used = statsOf(models.flatMap((model) => model.gates));
  return create("div", {},
    create("p", { class: "note" },
      "Each layer of Switchable Normalization mixes the statistics of several norms. A bar is a "
      + "layer, from the first on the left to the last on the right; its colors are the shares "
      + "that the layer learned."),
    create("ul", { class: "legend", role: "list" }, ...used.map((stat) => create("li", {},
      draw("svg", { viewBox: "0 0 1 1", "aria-hidden": "true" },
        draw("rect", { class: stat, width: 1, height: 1 })),
      `${STATS[stat] ?? stat} (${stat})`))));
}

function describeModel(model, index) {
  const facts = [
    `${count(model.parameters)} parameters`,
    `${model.classes.toLocaleString("en")} classes`,
    `input of ${model.input} × ${model.input} pixels`,
    ...(model.license ? [model.license] : []),
  ];
  const gates = model.gates
    ? [...Object.keys(PANELS).map((which) => panel(model, which, index)), table(model)]
    : [create("p", { class: "note" }, "No layer has switchable norm, so there are no gates.")];
  return create("article", { "aria-label": model.name },
    create("h3", {}, model.name),
    create("ul", { class: "facts note", role: "list" },
      ...facts.map((fact) => create("li", {}, fact))),
    ...gates);
}

function count(parameters) {
  return parameters < 1e5
    ? parameters.toLocaleString("en") : `${(parameters / 1e6).toFixed(1)} million`;
}

function statsOf(gates) {
  return Object.keys(STATS).filter((stat) => gates.some((layer) => layer.stats.includes(stat)));
}

function share(layer, which, stat) {
  return layer[which][layer.stats.indexOf(stat)] ?? 0;
}

function words(layer, which) {
  return layer.stats.map((stat) => `${stat} ${percent(share(layer, which, stat))}`).join(", ");
}

function panel({ name, gates }, which, index) {
  const stats = statsOf(gates);
  const mean = (stat) => gates.reduce((sum, layer) => sum + share(layer, which, stat), 0)
    / gates.length;
  const average = words({ stats, [which]: stats.map(mean) }, which);
  const [title, about] = [`title-${index}-${which}`, `about-${index}-${which}`];
  const picture = draw("svg", {
    viewBox: `0 0 ${gates.length} ${HEIGHT}`, preserveAspectRatio: "none",
    role: "img", "aria-labelledby": title, "aria-describedby": about,
  },
  draw("title", { id: title }, `Shares in the ${PANELS[which]} of each layer of ${name}`),
  draw("desc", { id: about }, `${gates.length} layers from ${gates[0].layer} to `
    + `${gates.at(-1).layer}. On average: ${average}. The table has the shares of each layer.`),
  ...gates.map((layer, i) => bar(layer, which, i)));
  return create("figure", { class: "gates" },
    create("figcaption", {},
      create("b", {}, `Shares in the ${PANELS[which]}`),
      create("span", { class: "note" }, `On average ${average}`)),
    picture,
    create("div", { class: "axis note", "aria-hidden": "true" },
      create("span", {}, gates[0].layer), create("span", {}, gates.at(-1).layer)));
}

function bar(layer, which, i) {
  let y = HEIGHT;
  const rects = layer.stats.map((stat) => {
    const height = HEIGHT * share(layer, which, stat);
    y -= height;
    return draw("rect", { class: stat, x: i + 0.07, y, width: 0.86, height });
  });
  return draw("g", {}, draw("title", {}, `${layer.layer}: ${words(layer, which)}`), ...rects);
}

function table({ name, gates }) {
  const stats = statsOf(gates);
  const cells = (layer) => Object.keys(PANELS).flatMap((which) => stats.map((stat) =>
    create("td", {}, layer.stats.includes(stat) ? percent(share(layer, which, stat)) : "–")));
  const head = [
    create("tr", {}, create("th", { scope: "col", rowspan: 2 }, "layer"),
      ...Object.values(PANELS).map((title) =>
        create("th", { scope: "colgroup", colspan: stats.length }, title))),
    create("tr", {}, ...Object.keys(PANELS).flatMap(() =>
      stats.map((stat) => create("th", { scope: "col" }, stat)))),
  ];
  const rows = gates.map((layer) =>
    create("tr", {}, create("th", { scope: "row" }, layer.layer), ...cells(layer)));
  const caption = `Shares of the norms in each layer of ${name}`;
  return create("details", {},
    create("summary", {}, "Shares as a table"),
    create("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
      create("table", {}, create("caption", { class: "unseen" }, caption),
        create("thead", {}, ...head), create("tbody", {}, ...rows))));
}
