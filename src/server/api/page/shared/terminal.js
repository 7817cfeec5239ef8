// Output as a terminal shows it: colours (SGR) as classes, and of a line with carriage returns its
// last state. Other escapes show as text.

const SGR = /\x1b\[([\d;]*)m/;

function lastState(line) {
  return line.replace(/\r+$/, '').split('\r').pop();
}

function withoutStyles(text) {
  return text.split(SGR).filter((part, index) => index % 2 === 0).join('');
}

// What is in force after an SGR sequence: 1 for bold, 30 to 37 for a colour, bright or not.
function sgrCodes(codes, numbers) {
  const list = numbers.split(';').map(Number);
  for (let at = 0; at < list.length; at++) {
    const code = list[at] >= 90 ? list[at] - 60 : list[at];
    if (code === 0) codes = [];
    else if (code === 1) codes = [1, ...codes];
    else if (code === 22) codes = codes.filter(other => other > 1);
    // A colour that is not shown, and its numbers.
    else if (code === 38 || code === 48) at += list[at + 1] === 5 ? 2 : 4;
    else if (code >= 30 && code < 40) {
      codes = codes.filter(other => other < 30).concat(code === 39 ? [] : code);
    }
  }
  return codes;
}

// The nodes of a text that begins with these codes in force, and the codes after it.
function styledNodes(text, codes) {
  const nodes = [];
  for (const [index, part] of text.split(SGR).entries()) {
    if (index % 2) codes = sgrCodes(codes, part);
    else if (part) {
      const classes = codes.map(code => 'sgr-' + code).join(' ');
      nodes.push(classes ? element('span', classes, safeText(part)) : safeText(part));
    }
  }
  return {nodes, codes};
}
