// Photos are dropped, pasted, chosen or taken, sent as they are, and shown with their classes.

import { create, percent } from "./elements.js";
import { describeModels } from "./models.js";

const MOST_PHOTOS = 100; // at a time; a folder of photos is work for `snzoo predict`
const REQUESTS = 4; // at the same time
const LONGEST_WAIT = 30; // seconds before another try
const LOG_LINES = 20;

const get = (id) => document.getElementById(id);
const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
const memory = (() => {
  try { return sessionStorage; } catch { return {}; } // a browser may forbid storage
})();

let queue = []; // photos to send
let locked = []; // photos that the server refused without a token
let running = 0;
let removal = new AbortController(); // ends the requests of photos that are removed

// The server

function ask(url, options = {}) {
  const headers = memory.token ? { Authorization: `Bearer ${memory.token}` } : {};
  return fetch(url, { ...options, headers });
}

async function loadModels() {
  const response = await ask("/v1/models");
  if (response.status === 401) return askForToken();
  if (!response.ok) throw new Error(await reason(response));
  const { models } = await response.json();
  const names = new Intl.ListFormat("en").format(models.map((model) => model.name));
  get("lead").textContent = `${names} ${models.length > 1 ? "run" : "runs"} on this server. `
    + "Photos are sent to it and to no other.";
  get("results").classList.toggle("several", models.length > 1);
  get("models").replaceChildren(...describeModels(models));
  get("models-section").hidden = false;
  get("access").hidden = true;
  return true;
}

async function loadExamples() {
  const { examples } = await (await fetch("/examples")).json();
  get("examples").replaceChildren(...examples.map(({ name, url }) => {
    const label = `Example ${name.replace(/-(\d+)\.\w+$/, " $1")}`;
    const image = create("img", { src: url, alt: label, loading: "lazy", draggable: "false" });
    const button = create("button", { type: "button", title: name }, image);
    button.addEventListener("click", async () => {
      const photo = await (await fetch(url)).blob();
      addPhotos([new File([photo], name, { type: photo.type })]);
    });
    return create("li", {}, button);
  }));
  get("try").hidden = examples.length === 0;
}

async function reason(response) {
  const answer = await response.json().catch(() => ({}));
  return answer.detail ?? `The server answered with status ${response.status}.`;
}

function askForToken(words) {
  if (words) get("refused").textContent = words;
  if (!get("access").hidden && !words) return; // it is being typed
  get("access").hidden = false;
  get("token").focus();
}

get("access").addEventListener("submit", async (event) => {
  event.preventDefault();
  get("refused").textContent = "";
  memory.token = get("token").value;
  try {
    if (!await loadModels()) return askForToken("The server did not accept this token.");
  } catch (error) {
    return askForToken(`The server gave no answer: ${error.message}`);
  }
  get("token").value = "";
  get("files").focus();
  send(locked.splice(0));
});

// Photos

function addPhotos(files) {
  const photos = [...files].slice(0, MOST_PHOTOS).map(makeCard);
  tell(files.length > MOST_PHOTOS
    ? `The first ${MOST_PHOTOS} of ${files.length} photos were taken; for more, use snzoo predict.`
    : "");
  if (!photos.length) return;
  get("results-section").hidden = false;
  get("results").prepend(...photos.map((photo) => photo.card));
  photos[0].card.scrollIntoView({ block: "nearest" });
  send(photos);
}

function makeCard(file) {
  const image = create("img", { src: URL.createObjectURL(file), alt: `Photo ${file.name}` });
  image.addEventListener("error", () => image.replaceWith(
    create("span", { class: "nothing note" }, "This browser cannot show the photo.")));
  const answer = create("div", { class: "answer" });
  const card = create("article", { class: "card", "aria-label": file.name },
    create("div", { class: "photo" }, image),
    create("h3", { title: file.name }, file.name), answer);
  return { file, card, answer, url: image.src };
}

function send(photos) {
  for (const photo of photos) showNote(photo, "Waiting…");
  queue.push(...photos);
  while (running < REQUESTS && queue.length) work();
}

async function work() {
  running += 1;
  while (queue.length) await classify(queue.shift());
  running -= 1;
}

async function classify(photo) {
  const { signal } = removal;
  showNote(photo, "Classifying…");
  try {
    await photo.file.slice(0, 1).arrayBuffer();
  } catch {
    return showError(photo, "This file cannot be read. If it is a folder, choose the photos in it.");
  }
  try {
    let { response, seconds } = await post(photo.file, signal);
    if (response.status === 503) {
      const wait = Math.min(Number(response.headers.get("Retry-After")) || 1, LONGEST_WAIT);
      showNote(photo, `The server is busy. Another try follows in ${wait} s.`);
      await sleep(wait);
      ({ response, seconds } = await post(photo.file, signal));
    }
    await showResponse(photo, response, seconds);
  } catch {
    if (signal.aborted) return;
    showError(photo, "The server gave no answer. It may have stopped, or the file is too large.",
      { again: true });
  }
}

async function post(file, signal) {
  const body = new FormData();
  body.append("photo", file);
  const start = performance.now();
  const response = await ask("/v1/predict", { method: "POST", body, signal });
  return { response, seconds: (performance.now() - start) / 1000 };
}

async function showResponse(photo, response, seconds) {
  if (response.status === 401) {
    locked.push(photo);
    showNote(photo, "Waiting for the access token.");
    return askForToken();
  }
  const answer = await response.clone().json().catch(() => ({}));
  const result = answer.photos?.[0];
  if (!result) {
    const words = response.status === 503 ? "The server is busy. Try again later." : null;
    return showError(photo, words ?? await reason(response), { again: response.status >= 500 });
  }
  if (result.error) return showError(photo, result.error);
  photo.answer.replaceChildren(
    create("div", { class: "columns" }, ...result.predictions.map(describePrediction)),
    create("p", { class: "note" },
      `${duration(seconds)}, of which ${duration(answer.seconds)} on the server`));
  const best = result.predictions.map(({ model, classes: [first] }) =>
    `${first.name}, ${percent(first.probability)}, by ${model}`);
  log(`${photo.file.name}: ${best.join("; ")}`);
}

function describePrediction({ model, classes }) {
  return create("div", {},
    create("h4", {}, model),
    create("ol", { class: "classes", role: "list" }, ...classes.map(({ name, probability }) => {
      const bar = create("span", { class: "bar", "aria-hidden": "true" });
      bar.style.inlineSize = `${100 * probability}%`;
      return create("li", {}, create("span", {}, name), " ",
        create("span", { class: "share" }, percent(probability)), bar);
    })));
}

function duration(seconds) {
  return seconds < 1
    ? `${Math.max(1, Math.round(1000 * seconds))}\u00a0ms` : `${seconds.toFixed(1)}\u00a0s`;
}

// Messages

function tell(words) {
  get("message").textContent = words;
}

function log(words) {
  get("log").append(create("p", {}, words));
  while (get("log").childElementCount > LOG_LINES) get("log").firstElementChild.remove();
}

function showNote(photo, words) {
  photo.answer.replaceChildren(create("p", { class: "note" }, words));
}

function showError(photo, words, { again = false } = {}) {
  photo.answer.replaceChildren(create("p", { class: "bad" }, words));
  log(`${photo.file.name}: ${words}`);
  if (!again) return;
  const button = create("button", { type: "button", class: "plain" }, "Try again");
  button.addEventListener("click", () => send([photo]));
  photo.answer.append(button);
}

// Ways for photos to come in

for (const input of [get("files"), get("camera")]) {
  input.addEventListener("change", () => {
    addPhotos(input.files);
    input.value = ""; // so that the same file can be chosen again
  });
}

document.addEventListener("paste", (event) => {
  const { files } = event.clipboardData;
  if (files.length) addPhotos(files);
  else if (event.target !== get("token")) tell("There is no photo on the clipboard.");
});

for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // else the browser opens the file in place of the page
    document.body.classList.add("over");
  });
}

document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over"); // it left the window
});

document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const { files } = event.dataTransfer;
  if (files.length) addPhotos(files);
  else tell("That was not a file. Save the photo first, or copy and paste it.");
});

get("clear").addEventListener("click", () => {
  removal.abort();
  removal = new AbortController();
  [queue, locked] = [[], []];
  for (const image of get("results").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  get("results").replaceChildren();
  get("results-section").hidden = true;
  get("files").focus();
});

loadModels().catch((error) => tell(`The models could not be listed: ${error.message}`));
loadExamples().catch(() => {}); // the page works without examples
