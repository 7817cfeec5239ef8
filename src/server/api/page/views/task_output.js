// One task: the output of one execution, followed while the command runs.

// A tab that is left open must not grow for ever: beyond this the output begins again with what the
// server has kept. In characters.
const MOST_OUTPUT = 4 * 1024 * 1024;
// Output is appended to the last element until that has so many characters.
const OUTPUT_ELEMENT_SIZE = 64 * 1024;
// Closer to the end than so many pixels, the output follows what is written.
const NEAR_THE_END_PX = 30;

const STREAMS = ['stdout', 'stderr'];

const outputReader = {
  // What is being read, or null:
  //   id        the execution and its attempt
  //   offsets   per stream, how many bytes are on the page
  //   whole     true if reading cannot go on from an offset: then all is fetched each time
  //   shown     the text on the page, if `whole`
  //   open      per stream, its unfinished last line: `text`, `codes` where it begins, `line` on the page
  //   complete  true once the execution has ended and everything is on the page
  reading: null,

  // Begins again with the next poll.
  reset() {
    this.reading = null;
  },

  // Shows what there is; true if there may be more.
  async poll(task, execution, signal) {
    const reading = this.begin(execution);
    if (reading.complete) return false;
    const ended = hasEnded(execution);
    const texts = await fetchOutput(task, execution, reading, signal);
    // Another execution was opened in the meantime.
    if (this.reading !== reading) return true;
    // Bytes that are not text come as U+FFFD. How many they were cannot be told, so the offset is
    // unknown: from now on all is fetched.
    const hasBytes = STREAMS.some(stream => texts[stream].includes('\ufffd'));
    if (hasBytes && !reading.whole) {
      reading.whole = true;
      return true;
    }
    showOutput(reading, texts);
    showNoOutput(execution);
    if (byId('execution-output').textContent.length > MOST_OUTPUT) this.reset();
    reading.complete = ended;
    return !ended;
  },

  begin({execution, attempt}) {
    const id = `${execution}#${attempt}`;
    if (this.reading?.id !== id) {
      const offsets = {stdout: 0, stderr: 0};
      this.reading = {id, offsets, open: noOpenLines(), whole: false, complete: false};
      clear(byId('execution-output'));
    }
    return this.reading;
  },
};

// The output from the offsets on. The server answers 422 if several executions of the task belong to
// this instance; then the output that is part of the task is shown, without the middle if it is long.
async function fetchOutput(task, execution, reading, signal) {
  const texts = {stdout: execution.stdout, stderr: execution.stderr};
  if (!execution.instance) return texts;
  const machine = encodeURIComponent(execution.instance);
  const path = `task/${encodeURIComponent(task.id)}/output?machine=${machine}`;
  try {
    for (const stream of STREAMS) {
      const offset = reading.whole ? 0 : reading.offsets[stream];
      texts[stream] = await getText(`${path}&stream=${stream}&offset=${offset}`, signal);
    }
  } catch (error) {
    if (error.status !== 422) throw error;
    reading.whole = true;
  }
  return texts;
}

function showOutput(reading, texts) {
  const box = byId('execution-output');
  const distance = box.scrollHeight - box.scrollTop - box.clientHeight;
  const all = texts.stdout + '\0' + texts.stderr;
  if (reading.whole) {
    if (all === reading.shown) return;
    clear(box);
    reading.open = noOpenLines();
    reading.shown = all;
  }
  for (const stream of STREAMS) {
    reading.offsets[stream] += countBytes(texts[stream]);
    appendOutput(reading.open[stream], box, stream, texts[stream]);
  }
  if (distance < NEAR_THE_END_PX) box.scrollTop = box.scrollHeight;
}

// How many bytes of the command's output this text stands for, with those that the server left out.
function countBytes(text) {
  let leftOut = 0;
  const written = text.replace(/\n… (\d+) bytes left out …\n/g, (_, count) => {
    leftOut += Number(count);
    return '';
  });
  return leftOut + new TextEncoder().encode(written).length;
}

function noOpenLines() {
  return {stdout: {text: '', codes: []}, stderr: {text: '', codes: []}};
}

// Appends to a stream. Its unfinished line is shown anew, in its place, when more of it comes.
function appendOutput(open, box, stream, text) {
  if (!text) return;
  const lines = (open.text + text).split('\n').map(lastState);
  const write = (part, el) => {
    const {nodes, codes} = styledNodes(part, open.codes);
    el.append(...nodes);
    return codes;
  };
  open.text = (open.text + text).split('\n').pop();
  const rest = lines.pop();
  if (open.line) clear(open.line);
  if (open.line && lines.length) {
    open.codes = write(lines.shift() + '\n', open.line);
    open.line = null;
  }
  if (lines.length) open.codes = write(lines.join('\n') + '\n', outputElement(box, stream));
  if (!open.text) return;
  open.line ??= outputElement(box, stream).appendChild(element('span'));
  write(rest, open.line);
}

// The element to which output of a stream is appended.
function outputElement(box, stream) {
  const last = box.lastElementChild;
  const fits = last?.className === stream && last.textContent.length < OUTPUT_ELEMENT_SIZE;
  return fits ? last : box.appendChild(element('span', stream));
}

// In place of output that is not there.
function showNoOutput(execution) {
  const box = byId('execution-output');
  const placeholder = box.querySelector('.gap');
  if (box.querySelector('.stdout, .stderr')) {
    placeholder?.remove();
    return;
  }
  const span = placeholder ?? box.appendChild(element('span', 'gap'));
  const notYet = execution.state === 'running' ? 'no output yet' : 'has not started';
  setText(span, hasEnded(execution) ? 'no output' : notYet);
}
