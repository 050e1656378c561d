// Charts in light or dark: as the device has it, or as a reader chose, which is remembered where the browser allows it.
{
  const root = document.documentElement, button = document.querySelector("#theme");
  const device = matchMedia("(prefers-color-scheme: dark)"), schemes = ["auto", "light", "dark"];
  const charts = [...document.querySelectorAll("figure.chart")].map((figure) => {
    const chart = { place: figure.querySelector(".plot"), ...JSON.parse(figure.querySelector("script").textContent) };
    if (matchMedia("(pointer: coarse)").matches) chart.layout.dragmode = false; // a finger scrolls the page
    return chart;
  });
  const draw = ({ place, data, layout, config, templates }, template) =>
    place.data
      ? Plotly.relayout(place, { template: templates[template] })
      : Plotly.newPlot(place, data, { ...layout, template: templates[template] }, config);
  const show = (scheme) => {
    root.dataset.theme = scheme;
    button.textContent = `theme: ${scheme}`;
    const template = scheme === "auto" ? (device.matches ? "dark" : "light") : scheme;
    return Promise.all(charts.map((chart) => draw(chart, template)));
  };
  const remembered = () => {
    try {
      return localStorage.getItem("growlm-theme");
    } catch {
      return null; // a page opened from a file may store nothing
    }
  };
  button.addEventListener("click", () => {
    show(schemes[(schemes.indexOf(root.dataset.theme) + 1) % schemes.length]);
    try {
      localStorage.setItem("growlm-theme", root.dataset.theme);
    } catch {
      // as above
    }
  });
  device.addEventListener("change", () => show(root.dataset.theme));
  show(schemes.includes(remembered()) ? remembered() : "auto").then(() => {
    root.dataset.ready = "";
  });
}
