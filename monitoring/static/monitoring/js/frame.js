/** Rendering once for all that happens within a moment, however much that is. */

/**
 * @param {() => void} render
 * @param {number} [restMs] at least so long after the last rendering
 * @returns {() => void} asks for a rendering with the next frame
 */
export function onNextFrame(render, restMs = 0) {
  let isAsked = false;
  let renderedAt = Number.NEGATIVE_INFINITY;
  const draw = () => {
    isAsked = false;
    renderedAt = performance.now();
    render();
  };
  return () => {
    if (isAsked) return;
    isAsked = true;
    const waitMs = renderedAt + restMs - performance.now();
    if (waitMs > 0) setTimeout(() => requestAnimationFrame(draw), waitMs);
    else requestAnimationFrame(draw);
  };
}
