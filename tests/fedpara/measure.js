// Measures pages in frames of several widths: PAGES (text by name) and WIDTHS are given before this.

const light = colour => {
  const [r, g, b] = colour.match(/[\d.]+/g).slice(0, 3).map(c => c / 255).map(
    c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
const apart = (a, b) =>
  a.right <= b.left + 1 || b.right <= a.left + 1 || a.bottom <= b.top + 1 || b.bottom <= a.top + 1;
const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;

function measure(frame, name, width) {
  const page = frame.contentDocument, root = page.documentElement, style = frame.contentWindow.getComputedStyle;
  const found = {name, width, trouble: [], charts: 0, pictures: 0, smallest: 99};
  const say = (what, where) => found.trouble.push(`${what}: ${(where.textContent || where.outerHTML).slice(0, 80)}`);
  const paper = style(page.body).backgroundColor;
  found.paper = light(paper);

  const shut = root.scrollWidth;
  page.querySelectorAll('details').forEach(part => part.open = true);
  found.over = [shut, root.scrollWidth].map(each => each - width);

  for (const part of page.querySelectorAll('p, h1, h2, h3, h4, td, th, dt, dd, li, a, summary, figcaption, pre')) {
    const under = part.closest('.card, pre, dl.facts div');
    if (contrast(style(part).color, under ? style(under).backgroundColor : paper) < 4.5) say('pale text', part);
    if (!part.closest('.wide, pre, .card') && part.getBoundingClientRect().right > width + 1) say('over the edge', part);
  }
  for (const box of page.querySelectorAll('.wide, pre, .card')) {
    const own = box.getBoundingClientRect();
    if (own.right > width + 1 || own.width < 40) say('a box over the edge', box);
  }
  for (const picture of page.querySelectorAll('img')) {
    found.pictures++;
    if (!picture.complete || !picture.naturalWidth || picture.getBoundingClientRect().width < 3) say('empty', picture);
    if (!picture.alt) say('a picture without words', picture);
  }
  for (const chart of page.querySelectorAll('svg.chart')) {
    found.charts++;
    measureChart(chart, style, paper, say);
    const scale = chart.getBoundingClientRect().width / chart.viewBox.baseVal.width;
    for (const text of chart.querySelectorAll('text'))
      found.smallest = Math.min(found.smallest, scale * parseFloat(style(text).fontSize));
  }
  found.loaded = frame.contentWindow.performance.getEntriesByType('resource')
    .map(entry => entry.name).filter(entry => !entry.startsWith('data:'));
  return found;
}

function measureChart(chart, style, paper, say) {
  const own = chart.getBoundingClientRect(), texts = [...chart.querySelectorAll('text')];
  if (own.width < 100 || own.height < 50 || !texts.length) say('an empty chart', chart);
  if (!chart.querySelector('title').textContent || !chart.querySelector('desc').textContent) say('no words', chart);
  const marks = [...chart.querySelectorAll('polyline, rect, circle, path, image')];
  if (!marks.some(mark => mark.getBBox().width > 0)) say('nothing drawn', chart);
  for (const mark of marks) {
    const ink = style(mark).stroke === 'none' ? style(mark).fill : style(mark).stroke;
    const coloured = mark.outerHTML.includes('var(--c') && !mark.outerHTML.includes('opacity');
    if (coloured && contrast(ink, paper) < 3) say('a pale mark', mark);
  }
  const apartFromMarks = texts.filter(text => !text.classList.contains('in'));
  const places = apartFromMarks.map(text => text.getBoundingClientRect());
  places.forEach((place, at) => {
    const text = apartFromMarks[at];
    if (!inside(place, own)) say('out of its chart', text);
    places.slice(at + 1).forEach((other, next) => {
      if (!apart(place, other)) say(`over "${apartFromMarks[at + 1 + next].textContent}"`, text);
    });
  });
}

const results = [];
const measured = (name, width) => new Promise(done => {
  const frame = document.createElement('iframe');
  frame.style.cssText = `width: ${width}px; height: 900px; border: 0`;
  frame.onload = () => {
    results.push(measure(frame, name, width));
    frame.remove();
    done();
  };
  frame.srcdoc = PAGES[name];
  document.body.append(frame);
});
Promise.all(Object.keys(PAGES).flatMap(name => WIDTHS.map(width => measured(name, width)))).then(() => {
  const out = document.createElement('pre');
  out.id = 'found';
  out.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(results))));
  document.body.append(out);
});
