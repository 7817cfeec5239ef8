// Elements: finding, making and changing them, and lists that are rendered again and again.
//
// A view renders everything on every poll. The setters below touch only what is different, so that
// rendering an unchanged view once a second costs nothing and keeps selections and focus.
// Text from the server goes in as text, always: nothing here takes HTML, and the page's policy
// (page.rs) forbids it as well.

function byId(id) {
  return document.getElementById(id);
}

// A new element. `attributes` is its class, or an object in which `onclick` may be a function.
function element(tag, attributes = {}, ...children) {
  const {onclick, ...others} = typeof attributes === 'string' ? {class: attributes} : attributes;
  const el = document.createElement(tag);
  if (onclick) el.onclick = onclick;
  for (const [name, value] of Object.entries(others)) el.setAttribute(name, value);
  el.append(...children);
  return el;
}

function setText(el, text) {
  if (el.shownText === text) return;
  el.shownText = text;
  el.textContent = text;
}

// One line of text that may be cut off on the screen: the tooltip has all of it.
function setLine(el, text) {
  const line = safeLine(text);
  if (el.shownText === line) return;
  setText(el, line);
  el.title = line;
}

function setClass(el, className) {
  if (el.className !== className) el.className = className;
}

function setVisible(el, visible) {
  if (el.hidden === Boolean(visible)) el.hidden = !visible;
}

// An attribute that is either "true" or absent.
function setFlag(el, attribute, on) {
  if (on) el.setAttribute(attribute, 'true');
  else el.removeAttribute(attribute);
}

// Empties boxes, those of `renderList` too.
function clear(...boxes) {
  for (const box of boxes) {
    box.rows = null;
    box.replaceChildren();
  }
}

// Makes the children of `box` be those of `items`, in their order. `keyOf(item)` identifies an item
// from one call to the next, so that its element is kept. `makeRow(item)` makes the row of a new
// item: {el, update(item)}; `update` fills it in, now and each time the list is rendered again.
function renderList(box, items, keyOf, makeRow) {
  const oldRows = box.rows ?? new Map();
  const rows = new Map();
  for (const item of items) {
    const key = keyOf(item);
    rows.set(key, oldRows.get(key) ?? makeRow(item));
  }
  for (const [key, row] of oldRows) {
    if (!rows.has(key)) row.el.remove();
  }
  let next = box.firstElementChild;
  for (const item of items) {
    const row = rows.get(keyOf(item));
    if (row.el === next) next = next.nextElementSibling;
    else box.insertBefore(row.el, next);
    row.update(item);
  }
  box.rows = rows;
}
