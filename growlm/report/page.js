// The page's charts; and light, dark, or as the device has it, remembered where the browser allows that.
{
  const charts = [...document.querySelectorAll("figure.chart")].map((root) => new Chart(root));
  const schemes = ["auto", "light", "dark"],
    root = document.documentElement;
  const button = document.querySelector("#theme");
  const remembered = () => {
    try {
      return localStorage.getItem("growlm-theme");
    } catch {
      return null; // a page opened from a file may keep nothing
    }
  };
  const dress = (scheme) => {
    root.dataset.theme = scheme;
    button.textContent = `theme: ${scheme}`;
    charts.forEach((chart) => chart.render());
  };
  button.addEventListener("click", () => {
    dress(schemes[(schemes.indexOf(root.dataset.theme) + 1) % schemes.length]);
    try {
      localStorage.setItem("growlm-theme", root.dataset.theme);
    } catch {
      // as above
    }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    charts.forEach((chart) => chart.render()),
  );
  dress(schemes.includes(remembered()) ? remembered() : "auto");
  root.dataset.ready = "";
}
