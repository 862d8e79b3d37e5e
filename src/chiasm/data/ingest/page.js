// What of a page can be seen in the window, and where: called in the page, returns JSON.
//   texts: [{text, tag, box, whole}] paragraphs in document order; whole: not cut by the window
//   controls: [{text, role, box}] links and buttons that lie wholly in the window
() => {
  const shown = (e) =>
    e.checkVisibility({ opacityProperty: true, visibilityProperty: true, contentVisibilityAuto: true });
  // Whether the middle of a box shows the element itself and not something that lies over it.
  const uncovered = (e, box) => {
    const hit = document.elementFromPoint((box[0] + box[2]) / 2, (box[1] + box[3]) / 2);
    return hit !== null && (e.contains(hit) || hit.contains(e));
  };
  const boxOf = (r) => [r.left, r.top, r.right, r.bottom];
  const inside = (b) => b[0] >= 0 && b[1] >= 0 && b[2] <= innerWidth && b[3] <= innerHeight;
  const outside = (b) => b[2] <= 0 || b[3] <= 0 || b[0] >= innerWidth || b[1] >= innerHeight;
  const words = (text) => text.replace(/\s+/g, " ").trim();
  const asShown = (text, e) => {
    const transform = getComputedStyle(e).textTransform;
    if (transform === "uppercase") return text.toUpperCase();
    if (transform === "lowercase") return text.toLowerCase();
    if (transform === "capitalize") return text.replace(/(^|\s)\S/g, (c) => c.toUpperCase());
    return text;
  };
  const paragraphOf = (e) => {
    while (e.parentElement && ["inline", "contents"].includes(getComputedStyle(e).display))
      e = e.parentElement;
    return e;
  };
  // Text that its own box hides: scrolled away, or replaced by an ellipsis.
  const clipped = (e) =>
    getComputedStyle(e).overflow !== "visible" &&
    (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1);

  const paragraphs = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const parent = node.parentElement;
    if (node.nodeType === Node.ELEMENT_NODE) {
      if (node.tagName === "BR") paragraphs.get(paragraphOf(parent))?.texts.push(" ");
      continue;
    }
    if (["SCRIPT", "STYLE", "NOSCRIPT", "TEMPLATE"].includes(parent.tagName) || !shown(parent)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const rects = [...range.getClientRects()].filter((r) => r.width > 0 && r.height > 0);
    const owner = paragraphOf(parent);
    if (!paragraphs.has(owner)) paragraphs.set(owner, { texts: [], rects: [] });
    const entry = paragraphs.get(owner);
    // Links set apart by margins alone are words apart to the eye.
    const last = entry.rects.at(-1);
    if (last && rects.length && (rects[0].left > last.right + 1 || rects[0].top >= last.bottom - 1))
      entry.texts.push(" ");
    entry.texts.push(asShown(node.data, parent));
    entry.rects.push(...rects);
  }
  const texts = [];
  for (const [owner, { texts: parts, rects }] of paragraphs) {
    const text = words(parts.join(""));
    if (!text || !rects.length) continue;
    const box = [
      Math.min(...rects.map((r) => r.left)), Math.min(...rects.map((r) => r.top)),
      Math.max(...rects.map((r) => r.right)), Math.max(...rects.map((r) => r.bottom)),
    ];
    if (outside(box)) continue;
    const covered = inside(box) && !rects.some((r) => uncovered(owner, boxOf(r)));
    if (covered) continue;
    texts.push({ text, tag: owner.tagName.toLowerCase(), box, whole: inside(box) && !clipped(owner) });
  }

  const controls = [];
  for (const e of document.querySelectorAll("a[href], button, [role=button], input[type=submit], input[type=button]")) {
    const text = words(e.tagName === "INPUT" ? e.value : e.innerText);
    const box = boxOf(e.getBoundingClientRect());
    if (!text || !shown(e) || !inside(box) || box[2] - box[0] < 4 || box[3] - box[1] < 4) continue;
    if (!uncovered(e, box) || clipped(e)) continue;
    controls.push({ text, role: e.tagName === "A" && e.role !== "button" ? "link" : "button", box });
  }
  return { title: document.title.trim(), texts, controls };
}
