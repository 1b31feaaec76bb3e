// The browser's half of a Panel. HTML arrives escaped from Python; what the reader moves or presses goes back as a
// message. Nothing is computed here.

const choices = (input) => JSON.parse(input.dataset.choices);

function read(input) {
  if (input.type === "checkbox") return input.checked;
  if (input.dataset.choices) return choices(input)[input.valueAsNumber][0];
  return input.type === "number" ? input.valueAsNumber : input.value;
}

function write(input, value) {
  if (input.type === "checkbox") input.checked = value;
  else if (input.dataset.choices) input.value = choices(input).findIndex(([choice]) => choice === value);
  else if (input.type !== "number" || input.valueAsNumber !== value) input.value = value;
  caption(input);
}

// A slider's position means nothing to a reader: show and announce what it stands for.
function caption(input) {
  if (!input.dataset.choices) return;
  const text = choices(input)[input.valueAsNumber][1];
  input.setAttribute("aria-valuetext", text);
  input.closest("label").querySelector(".shown").textContent = text;
}

function render({ model, el }) {
  const root = document.createElement("section");
  root.className = "itpo";
  root.setAttribute("aria-label", model.get("label"));
  const region = (name) => root.appendChild(Object.assign(document.createElement("div"), { className: `itpo-${name}` }));
  const controls = region("controls"), status = region("status"), view = region("view");
  status.setAttribute("role", "status");
  el.append(root);

  const inputs = () => [...controls.querySelectorAll("input, select")];
  const sources = new WeakMap(); // control -> the HTML it was made from

  // Replace only the controls that changed: the one in use keeps its focus and its drag.
  function drawControls() {
    const fresh = document.createElement("template");
    fresh.innerHTML = model.get("controls");
    const focused = controls.contains(document.activeElement) ? document.activeElement.name : null;
    const old = [...controls.children];
    const next = [...fresh.content.children].map((element) => {
      const kept = old.find((o) => sources.get(o) === element.outerHTML);
      if (!kept) sources.set(element, element.outerHTML);
      return kept ?? element;
    });
    if (next.length !== old.length || next.some((element, i) => element !== old[i])) {
      next.forEach((element, i) => controls.children[i] !== element && controls.insertBefore(element, controls.children[i] ?? null));
      while (controls.children.length > next.length) controls.lastElementChild.remove();
      if (focused && !controls.contains(document.activeElement)) controls.querySelector(`[name="${focused}"]`)?.focus();
    }
    fill();
  }

  function fill() {
    const values = model.get("values");
    for (const input of inputs()) {
      const typing = input === document.activeElement && (input.type === "number" || input.type === "text");
      if (input.name in values && !(input.name in moves) && !typing) write(input, values[input.name]);
      else caption(input);
    }
  }

  function drawView() {
    const open = new Set([...view.querySelectorAll("details[open]")].map((details) => details.dataset.key));
    view.innerHTML = model.get("view");
    for (const details of view.querySelectorAll("details")) details.open = open.has(details.dataset.key);
  }

  const drawStatus = () => { status.textContent = model.get("status"); };

  // One message at a time: while Python works, moves pile up and the newest of each control wins.
  let moves = {}, pressed = null, waiting = false;
  function post() {
    if (waiting || (pressed === null && Object.keys(moves).length === 0)) return;
    model.send({ moves, press: pressed });
    [moves, pressed, waiting] = [{}, null, true];
  }
  function answered(message) {
    if (!message.done) return;
    waiting = false;
    fill();
    post();
  }

  controls.addEventListener("input", ({ target }) => {
    caption(target);
    const value = read(target);
    if (target.type === "text" || Number.isNaN(value)) return; // text waits for its button; "-" is no number yet
    moves[target.name] = value;
    post();
  });
  const press = (name) => {
    pressed = name;
    for (const input of inputs().filter(({ type }) => type === "text")) {
      moves[input.name] = input.value;
      input.value = "";
    }
    post();
  };
  controls.addEventListener("click", ({ target }) => target.tagName === "BUTTON" && press(target.name));
  controls.addEventListener("keydown", (event) => {
    const button = event.target.type === "text" && event.key === "Enter" && controls.querySelector("label.wide ~ button:not(:disabled)");
    if (button) { event.preventDefault(); press(button.name); }
  });

  const listeners = {
    "change:controls": drawControls,
    "change:values": fill,
    "change:view": drawView,
    "change:status": drawStatus,
    "msg:custom": answered,
  };
  drawControls(); drawView(); drawStatus();
  for (const [event, listener] of Object.entries(listeners)) model.on(event, listener);
  return () => { for (const [event, listener] of Object.entries(listeners)) model.off(event, listener); };
}

export default { render };
