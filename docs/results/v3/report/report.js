// Remembers the choice of colours from page to page. Without it the choice holds for one page.
(function () {
  "use strict";
  var root = document.documentElement;
  var key = "vodka-report-colours";
  function stored(value) {
    try {
      if (value === undefined) { return localStorage.getItem(key) || "auto"; }
      localStorage.setItem(key, value);
    } catch (error) { /* some browsers refuse it to files */ }
    return value || "auto";
  }
  function show(choice) {
    if (choice === "auto") { root.removeAttribute("data-colours"); } else { root.setAttribute("data-colours", choice); }
  }
  show(stored());
  document.addEventListener("DOMContentLoaded", function () {
    var choice = document.getElementById("colours-" + stored());
    if (choice) { choice.checked = true; }
  });
  document.addEventListener("change", function (event) {
    if (event.target.name === "colours") { show(stored(event.target.value)); }
  });
})();
