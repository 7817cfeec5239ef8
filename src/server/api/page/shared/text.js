// Text: what is safe to show, numbers with their words, lists in a sentence.

// Characters that would act on the reader's screen: controls, direction marks, invisible ones.
const UNSAFE = new RegExp(
  '[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u061c\\u200b-\\u200f\\u2028-\\u202e' +
    '\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb]',
  'g',
);

// Text of several lines, with escapes in place of unsafe characters.
function safeText(text) {
  return String(text ?? '').replace(/\r\n/g, '\n').replace(UNSAFE, escapeCharacter);
}

function escapeCharacter(character) {
  const code = character.charCodeAt(0);
  const hex = code.toString(16);
  return code < 256 ? '\\x' + hex.padStart(2, '0') : '\\u{' + hex + '}';
}

// The same, on one line.
function safeLine(text) {
  return safeText(text).replace(/\n/g, '\\n').replace(/\t/g, '\\t');
}

function formatCount(count) {
  return count.toLocaleString('en');
}

// "1 machine", "1,000 machines".
function plural(count, noun) {
  return `${formatCount(count)} ${noun}${count === 1 ? '' : 's'}`;
}

// "a, b and 7 more".
function joinFirst(list, most) {
  const rest = list.length - most;
  return list.slice(0, most).join(', ') + (rest > 0 ? ` and ${rest} more` : '');
}

// What there is of these, with dots in between.
function joinPresent(parts) {
  return parts.filter(Boolean).join(' · ');
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}

// A Map from each key to the items that have it, in the order of the list.
function groupBy(list, keyOf) {
  const groups = new Map();
  for (const item of list) {
    const key = keyOf(item);
    if (groups.has(key)) groups.get(key).push(item);
    else groups.set(key, [item]);
  }
  return groups;
}

// Whether one of these texts contains what was searched for.
function matches(texts, search) {
  return texts.some(text => text.toLowerCase().includes(search.toLowerCase()));
}

// "web-2" comes before "web-10".
const compareNames = new Intl.Collator('en', {numeric: true}).compare;
