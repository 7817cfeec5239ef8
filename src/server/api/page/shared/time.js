// Times and durations. The API gives times as text, such as "2026-01-31T12:00:00.000Z".

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

// The Date of an answer has whole seconds: a smaller difference says nothing about the clock.
const LEAST_CLOCK_OFFSET_MS = 3 * SECOND;

// Server's clock minus browser's clock, in milliseconds: the browser's may be wrong.
let clockOffset = 0;

function correctClock(dateOfAnswer) {
  const offset = parseTime(dateOfAnswer) - Date.now();
  clockOffset = Math.abs(offset) > LEAST_CLOCK_OFFSET_MS ? offset : 0;
}

function serverNow() {
  return Date.now() + clockOffset;
}

// Milliseconds since 1970, or null for a time that is not there yet.
function parseTime(text) {
  return text ? Date.parse(text) : null;
}

function formatTime(text) {
  return text ? new Date(text).toLocaleString() : '';
}

// "850 ms", "3.5 s", "2 min 5 s", "1 d 3 h".
function formatDuration(ms) {
  if (ms == null || isNaN(ms)) return '';
  if (ms < SECOND) return `${Math.max(0, Math.round(ms))} ms`;
  if (ms < 10 * SECOND) return `${(ms / SECOND).toFixed(1).replace('.0', '')} s`;
  if (ms < MINUTE) return `${Math.round(ms / SECOND)} s`;
  if (ms < HOUR) return inTwoUnits(ms, MINUTE, 'min', SECOND, 's');
  if (ms < DAY) return inTwoUnits(ms, HOUR, 'h', MINUTE, 'min');
  return inTwoUnits(ms, DAY, 'd', HOUR, 'h');
}

function inTwoUnits(ms, large, largeName, small, smallName) {
  const rest = Math.floor(ms % large / small);
  return `${Math.floor(ms / large)} ${largeName}` + (rest > 0 ? ` ${rest} ${smallName}` : '');
}

// How long ago that was, in whole units of the largest kind: "2 min ago".
function formatAge(text) {
  const age = serverNow() - parseTime(text);
  if (age < 5 * SECOND) return 'now';
  const unit = [DAY, HOUR, MINUTE].find(unit => age >= unit) ?? SECOND;
  return formatDuration(age - age % unit) + ' ago';
}

// How long until then, in whole units of the largest kind: "in 2 min".
function formatUntil(text) {
  const left = parseTime(text) - serverNow();
  if (left < SECOND) return 'now';
  const unit = [DAY, HOUR, MINUTE].find(unit => left >= unit) ?? SECOND;
  return 'in ' + formatDuration(left - left % unit);
}

// A setting in seconds, as a number or a text such as "5m"; -1 is no limit.
function formatLimit(seconds) {
  if (seconds === -1) return 'none';
  if (typeof seconds === 'string') return seconds;
  return seconds == null ? '' : formatDuration(seconds * SECOND);
}
