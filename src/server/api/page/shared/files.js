// Files on the server: their sizes in words, and links that download them.

const BYTE_UNITS = [['GiB', 2 ** 30], ['MiB', 2 ** 20], ['KiB', 2 ** 10]];
// A downloaded file is freed after so long: by then the browser has begun to save it. In milliseconds.
const DOWNLOAD_KEPT_MS = MINUTE;

// "3.5 MiB", "120 bytes"
function formatBytes(bytes) {
  const [unit, size] = BYTE_UNITS.find(([, size]) => bytes >= size) ?? [];
  return unit ? `${(bytes / size).toFixed(1).replace('.0', '')} ${unit}` : plural(bytes, 'byte');
}

function lastPart(path) {
  return path.split('/').pop() || path;
}

// A link to the bytes of a blob. A browser cannot send a token with a link: then the page fetches them.
function makeDownload(sha256, name) {
  const link = element('a', {class: 'button', href: `${BASE}api/v1/blob/${sha256}`, download: name}, 'Download');
  link.onclick = event => {
    if (!token) return;
    event.preventDefault();
    downloadWithToken(link).catch(error => showToast(safeLine(error.message)));
  };
  return link;
}

async function downloadWithToken({href, download}) {
  showToast('Downloading…');
  const response = await fetch(href, {headers: {Authorization: 'Bearer ' + token}});
  if (!response.ok) throw failureOf({status: response.status, content: await response.text()});
  const url = URL.createObjectURL(await response.blob());
  element('a', {href: url, download}).click();
  setTimeout(() => URL.revokeObjectURL(url), DOWNLOAD_KEPT_MS);
}
